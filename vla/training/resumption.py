"""Going on with a run: what its checkpoint was trained with beside what is asked for now."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vla.common.renamed_keys import RUN
from vla.errors import InputError
from vla.training.train_config import TrainConfig

FIXED = {
    "plan.seed": "what a step draws follows from it",
    "plan.batch_size": "what a step draws follows from it; plan.accumulate halves its memory to the same effect",
    "shares": "what a step draws follows from them",
    "temperature": "what a step draws follows from it",
    "delay": "what a step draws follows from it",
    "horizon": "it is part of the model",
    "tiles": "it is part of the model",
    "images": "it is part of the model",
    "image_tokens": "it is part of the model",
    "backbone_weights": "the run began from others",
    "reward_weights": "the run was judged by others",
}
"""Settings that stay as they are in one run, and why; a key stands for those below it, too."""


def settings(plan: TrainConfig, shares: Mapping[str, float], origin: Mapping[str, Any]) -> dict[str, Any]:
    """What a run is trained with, as JSON has it: the plan, each source's share of the rows, and the options of
    `vla train` that say where the data and the model come from."""
    rounded = {name: round(share, 9) for name, share in shares.items()}
    found: dict[str, Any] = json.loads(json.dumps({**origin, "shares": rounded, "plan": asdict(plan)}))
    return found


def changes(checkpoint: Path, saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What is asked for now and was not when the checkpoint was saved: "plan.lr 0.001 -> 0.0005" each.

    Of a checkpoint that does not say how it was trained, nothing. Raises InputError for what must not change in a run.
    """
    before, after = {_current(key): value for key, value in _flat(saved)}, dict(_flat(now))
    if not before:
        return []
    changed = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    for key in changed:
        why = next((why for fixed, why in FIXED.items() if key == fixed or key.startswith(f"{fixed}.")), None)
        if why is not None:
            told = f"another {key} ({before.get(key)} -> {after.get(key)}): {why}"
            raise InputError(
                f"cannot go on from {checkpoint} with {told}. Set it back, or train into another folder (out=), from "
                f"these weights with backbone={checkpoint}"
            )
    return [f"{key} {before.get(key)} -> {after.get(key)}" for key in changed]


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _current(key: str) -> str:
    """The present name of a dotted key that an earlier version wrote."""
    for old, new in RUN.items():
        if key == old or key.startswith(f"{old}."):
            return new + key.removeprefix(old)
    return key
