"""The held-out scores of a model in training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vla.evaluation.heldout import action_errors, vqa_accuracy
from vla.models.vla import VLA
from vla.training.checkpoint_gate import UNITS
from vla.types import Example


@dataclass(frozen=True)
class HeldoutScores:
    """Computes the held-out scores of a model.

    | score                     | value                                                                       |
    |---------------------------|-----------------------------------------------------------------------------|
    | `action_error`            | share of the data's range (`action_errors`), mean over the episode stores   |
    | `action_error_<store>`    | the same of one store, if there are several                                 |
    | `error of <component>`    | error of an action component in its unit                                    |
    | `vqa`                     | mean accuracy over the question kinds of the first question store           |
    | `<store>/<kind>`          | accuracy of one kind of question                                            |

    Attributes:
        questions: The held-out questions of each store by kind.
        windows: The held-out windows of each store.
    """

    questions: Mapping[str, Mapping[str, Sequence[Example]]]
    windows: Mapping[str, Sequence[Example]]

    def __call__(self, model: VLA) -> dict[str, float]:
        scores: dict[str, float] = {}
        errors = {name: action_errors(model, examples) for name, examples in self.windows.items() if examples}
        if errors:
            scores["action_error"] = float(np.mean([share for share, _ in errors.values()]))
        for name, (share, components) in errors.items():
            prefix = f"{name}: " if len(errors) > 1 else ""
            scores |= {f"action_error_{name}": share} if len(errors) > 1 else {}
            scores |= {f"{UNITS}{prefix}{component}": error for component, error in components.items()}
        for name, by_kind in self.questions.items():
            if not by_kind:  # the store has too few images for held-out ones
                continue
            accuracy = vqa_accuracy(model, by_kind)
            scores.setdefault("vqa", float(np.mean(list(accuracy.values()))))
            scores |= {f"{name}/{kind}": value for kind, value in accuracy.items()}
        return scores
