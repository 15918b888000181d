"""Resuming a run: compares the settings of its checkpoint with the current ones."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vla.common.renamed_keys import RUN, current_key
from vla.errors import InputError
from vla.training.train_config import TrainConfig

FIXED = {
    "plan.seed": "it determines the rows of a step",
    "plan.batch_size": "it determines the rows of a step; plan.accumulate reduces its memory with equal results",
    "shares": "they determine the rows of a step",
    "temperature": "it determines the rows of a step",
    "delay": "it determines the rows of a step",
    "horizon": "it is part of the model",
    "tiles": "it is part of the model",
    "images": "it is part of the model",
    "image_tokens": "it is part of the model",
    "backbone_weights": "the run began from other weights",
    "reward_weights": "the run began with another reward model",
}
"""Settings that must not change within a run, with the reason; a key includes its nested keys."""


def settings(plan: TrainConfig, shares: Mapping[str, float], origin: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run as JSON values.

    Args:
        plan: The training configuration.
        shares: Each source's share of the rows.
        origin: The options of `vla train` on the origin of data and model.
    """
    rounded = {name: round(share, 9) for name, share in shares.items()}
    values: dict[str, Any] = json.loads(json.dumps({**origin, "shares": rounded, "plan": asdict(plan)}))
    return values


def changes(checkpoint: Path, saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The settings that differ from those of the checkpoint, as "plan.lr 0.001 -> 0.0005".

    Empty for a checkpoint without settings.

    Raises:
        InputError: a setting differs that must not change within a run.
    """
    before, after = {current_key(key, RUN): value for key, value in _flat(saved)}, dict(_flat(now))
    if not before:
        return []
    changed = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    for key in changed:
        reason = next((text for fixed, text in FIXED.items() if key == fixed or key.startswith(f"{fixed}.")), None)
        if reason is not None:
            change = f"another {key} ({before.get(key)} -> {after.get(key)}): {reason}"
            raise InputError(
                f"cannot resume from {checkpoint} with {change}. Restore the value, or train into another folder "
                f"(out=), from these weights with backbone={checkpoint}"
            )
    return [f"{key} {before.get(key)} -> {after.get(key)}" for key in changed]


def changed_rows(saved: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The sources whose number of rows differs, as " (robot: 90 rows -> 120)"; empty if there is none."""
    before, after = saved.get("rows") or {}, now.get("rows") or {}
    found = [f"{name}: {before[name]} rows -> {n}" for name, n in after.items() if before.get(name, n) != n]
    return f" ({', '.join(found)})" if found else ""


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
