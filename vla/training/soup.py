"""Model soups: a model with the average of the weights of several fine-tunings (Wortsman et al. 2022, 2203.05482)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vla.common.device import accelerator
from vla.errors import InputError
from vla.models.build import checkpoint_folder
from vla.models.processor import Processor
from vla.models.vla import VLA
from vla.training.checkpoint_gate import UNITS, choose
from vla.training.loop import Evaluate

IGNORED = ("statistics", "start", "tasks")
"""Values of a processor that do not change its output."""


def parents_of(backbone: str | Sequence[str] | Mapping[str, Any]) -> list[str]:
    """The checkpoints of a list in `backbone`; empty for any other backbone.

    Raises:
        InputError: there is only one, or one is not a checkpoint.
    """
    if isinstance(backbone, str | Mapping):
        return []
    if len(backbone) < 2:
        raise InputError(f"backbone=[{', '.join(backbone)}]: takes two or more checkpoints, or one without brackets")
    for parent in backbone:
        if checkpoint_folder(parent) is None:
            raise InputError(f"backbone=[…] averages checkpoints, and {parent} is not the folder of one")
    return list(backbone)


def checkpoints_of(backbone: str | Sequence[str] | Mapping[str, Any]) -> list[Path]:
    """The folders of the checkpoints from which training starts; empty for other backbones."""
    names = [backbone] if isinstance(backbone, str | Mapping) else parents_of(backbone)
    return [folder for folder in map(checkpoint_folder, names) if folder is not None]


def cook(
    parents: Sequence[str], make: Callable[[str], VLA], heldout: Callable[[Processor], Evaluate], margin: float
) -> VLA:
    """The average of the parents, if the gate of checkpoints prefers it to each of them, otherwise the best parent.

    Prints the scores. Two models are in memory at a time.

    Args:
        parents: The checkpoints.
        make: Loads one.
        heldout: Returns the function of the held-out scores.
        margin: As in `choose`.

    Raises:
        InputError: two parents are of different models; the message names the first difference.
    """
    average: dict[str, Tensor] = {}
    scores: list[dict[str, float]] = []
    first: VLA | None = None
    evaluate: Evaluate | None = None
    for parent in parents:
        model = make(parent)
        first = first or model
        if difference := _difference(_values(first), _values(model)):
            raise InputError(f"{parents[0]} and {parent} cannot be averaged: {difference}")
        evaluate = evaluate or heldout(model.processor)
        scores.append(_evaluated(parent, model, evaluate))
        for name, tensor in model.state_dict().items():
            average[name] = average[name] + tensor / len(parents) if name in average else tensor / len(parents)
    assert first is not None and evaluate is not None
    model.load_state_dict({name: tensor.to(model.state_dict()[name].dtype) for name, tensor in average.items()})
    model.processor.tasks = tuple(sorted({*first.processor.tasks, *model.processor.tasks}))
    scores.append(_evaluated("their average", model, evaluate))
    if choose(scores, margin) == len(parents):
        print("training starts from the average")
        return model
    best = choose(scores, margin, range(len(parents)))
    assert best is not None
    print(f"the average is worse than {parents[best]}, from which training starts")
    return make(parents[best])


def _evaluated(name: str, model: VLA, evaluate: Evaluate) -> dict[str, float]:
    with torch.no_grad():
        scores = evaluate(model.eval().to(accelerator()))
    model.cpu()
    shown = {key: value for key, value in scores.items() if "/" not in key and not key.startswith(UNITS)}
    print(f"{name}: {', '.join(f'{key} {value:.3g}' for key, value in shown.items()) or 'no held-out scores'}")
    return scores


def _values(model: VLA) -> dict[str, Any]:
    """What models must share to be averaged, as JSON values."""
    processor = model.processor.to_dict() | {"tokenizer": model.processor.tokenizer.to_str()}
    processor["robots"] = {robot["embodiment"]["name"]: robot for robot in processor["robots"]}
    values: dict[str, Any] = json.loads(json.dumps({"backbone": model.backbone.config, **processor}))
    return values


def _difference(one: Any, other: Any, key: str = "") -> str:
    """The first key with different values, and these; empty if there is none."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        found = (
            _difference(one.get(name), other.get(name), f"{key}.{name}".lstrip("."))
            for name in {**one, **other}
            if name not in IGNORED
        )
        return next(filter(None, found), "")
    if one == other:
        return ""
    texts = [text if len(text := str(value)) <= 60 else f"{text[:57]}…" for value in (one, other)]
    return f"{key} is {texts[0]} and {texts[1]}" if texts[0] != texts[1] else f"{key} differs"
