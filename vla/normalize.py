"""Quantile normalisation of states and actions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from vla.errors import InputError


@dataclass(frozen=True)
class QuantileNormalizer:
    """Maps [low, high], the 1st and 99th percentile of the data, to [-1, 1] per component (OpenVLA, sec. 3.2).

    Values outside stay outside: what clips is the tokenizer, which says how far it reaches.
    """

    low: tuple[float, ...]
    high: tuple[float, ...]

    def __post_init__(self) -> None:
        bad = [i for i, (a, b) in enumerate(zip(self.low, self.high, strict=True)) if not 0 < b - a < np.inf]
        if bad:
            low, high = self.low[bad[0]], self.high[bad[0]]
            raise InputError(f"cannot normalise component {bad[0]}: its range [{low}, {high}] is empty or not finite")

    def normalize(self, values: Float[np.ndarray, "*t a"]) -> Float[np.ndarray, "*t a"]:
        low, high = np.asarray(self.low), np.asarray(self.high)
        return 2 * (values - low) / (high - low) - 1

    def denormalize(self, values: Float[np.ndarray, "*t a"]) -> Float[np.ndarray, "*t a"]:
        low, high = np.asarray(self.low), np.asarray(self.high)
        return low + (values + 1) / 2 * (high - low)
