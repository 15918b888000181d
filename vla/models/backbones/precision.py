"""Configurations that name no precision: weights are float32 in memory, whatever a checkpoint's file holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

KEYS = ("dtype", "torch_dtype")
"""What transformers calls the precision of a checkpoint, now and before."""


def without_dtype(config: Mapping[Any, Any]) -> dict[Any, Any]:
    """A copy of `config` in which neither it nor a part of it names a precision.

    transformers makes a module in the precision that its configuration names. Updates of training are lost in bfloat16:
    a moving average of a decay of 0.995 does not move at all.
    """
    return {
        key: without_dtype(value) if isinstance(value, Mapping) else value
        for key, value in config.items()
        if key not in KEYS
    }
