"""The preference stage: preference optimisation of a model against a frozen copy of itself."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import batched

import torch
from jaxtyping import Float
from torch import Tensor

from vla.datasets.preferences import Pair
from vla.models.vla import VLA
from vla.training.distributed import join
from vla.training.loop import Evaluate, Evaluation, Outcome
from vla.training.preference.loop import open_pairs, optimize
from vla.training.preference.losses import Objective, preference_loss, token_logps, token_weights
from vla.training.question_run import QuestionRun


@dataclass(frozen=True)
class PreferenceOptions(Objective):
    """The options of the preference stage: the objective, and further pairs.

    Attributes:
        files: Files of pairs.
        images: The folder of the images of `files`.
    """

    files: Sequence[str] = ()
    images: str | None = None


def train_preference(run: QuestionRun, options: PreferenceOptions, evaluate: Evaluate) -> Outcome:
    """Trains a model on the pairs of stores and files (`open_pairs`); resumes a run with checkpoints.

    The reference is the model before training. Held-out scores, in addition to those of `evaluate`:
    `preference_accuracy` (share of pairs with a positive margin) and `preference_margin` (mean of beta times the
    difference of log-ratios), also by kind of fault.

    Args:
        run: The run; `plan.batch_size` counts pairs, and `plan.augment` must be 0.
        options: The options of the stage.
        evaluate: Computes held-out scores.

    Raises:
        InputError: there are too few pairs, or several ranks.
    """
    pairs, heldout = open_pairs(run, options.files, options.images)
    model = run.model.to(join().device)
    reference = deepcopy(model).requires_grad_(False).eval()

    def loss(micro: Sequence[Pair]) -> tuple[Float[Tensor, ""], Mapping[str, float]]:
        value, margin = pair_loss(model.train(), reference, micro, options)
        return value, {"margin": margin.mean().item(), "accuracy": (margin > 0).float().mean().item()}

    def scores(trained: VLA) -> dict[str, float]:
        return evaluate(trained) | preferred(trained, reference, heldout, options)

    return optimize(run, pairs, loss, Evaluation(scores, "preference_accuracy"))


def pair_loss(
    model: VLA, reference: VLA, pairs: Iterable[Pair], objective: Objective
) -> tuple[Float[Tensor, ""], Float[Tensor, "p"]]:
    """The loss of the pairs and the margin of each (`preference_loss`)."""
    both = [pair.examples() for pair in pairs]
    batch = model.processor.batch([one for one, _ in both] + [other for _, other in both]).to(model.device)
    with torch.no_grad():
        before = token_logps(reference, batch)
    return preference_loss(token_logps(model, batch), before, token_weights(batch.labels, objective), objective)


@torch.no_grad()
def preferred(
    model: VLA, reference: VLA, pairs: Sequence[Pair], objective: Objective, rows: int = 32
) -> dict[str, float]:
    """`preference_accuracy` and `preference_margin` of the pairs, and of each kind as `…/<kind>`."""
    margins = torch.cat([pair_loss(model, reference, part, objective)[1] for part in batched(pairs, rows)]).cpu()
    return by_kind(pairs, margins, "preference")


def by_kind(pairs: Sequence[Pair], margins: Float[Tensor, "p"], name: str) -> dict[str, float]:
    """`<name>_accuracy` (share of positive margins) and `<name>_margin` (mean), of all pairs and of each kind."""
    scores: dict[str, float] = {}
    for kind in ("", *sorted({pair.kind for pair in pairs})):
        selected = margins[torch.tensor([not kind or pair.kind == kind for pair in pairs])]
        suffix = f"/{kind}" if kind else ""
        scores[f"{name}_accuracy{suffix}"] = (selected > 0).float().mean().item()
        scores[f"{name}_margin{suffix}"] = selected.mean().item()
    return scores
