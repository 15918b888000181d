"""Removes dtypes from configurations: weights are float32 in memory, independent of the checkpoint's dtype."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

KEYS = ("dtype", "torch_dtype")
"""Names of the dtype in configurations of transformers, current and earlier."""


def without_dtype(config: Mapping[Any, Any]) -> dict[Any, Any]:
    """A copy of `config` without dtypes, also in nested configurations.

    transformers creates a module in the dtype of its configuration. Small updates are lost in bfloat16: a moving
    average with decay 0.995 does not change at all.
    """
    return {
        key: without_dtype(value) if isinstance(value, Mapping) else value
        for key, value in config.items()
        if key not in KEYS
    }
