"""Normalisation of states and actions: each component's own range becomes [-1, 1].

The range of a component is, by its method:

| method   | range                    | as in                                       |
|----------|--------------------------|---------------------------------------------|
| quantile | 1 % to 99 % of the data  | OpenVLA (sec. 3.2), pi0-FAST, openpi        |
| min-max  | smallest to largest      | ACT's and diffusion policy's datasets       |
| mean-std | mean - std to mean + std | ACT, SmolVLA and LeRobot's default          |

Two rules keep it bounded and keep every motion. Where the data would reach beyond ±`BOUND`, the range is too narrow for
them (a joint that hardly moves, and sometimes by a radian; a gripper that rarely opens): quantiles give way to the
smallest and largest value, a standard deviation grows until the farthest value is at the bound. A component whose
values are all one number, but for float32's rounding, is constant: it normalises to 0, and a later deviation from it
keeps its own unit. Targets of training are clipped at ±`BOUND`, which none of the data of the range's own reaches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from vla.common.statistics import Statistics
from vla.errors import InputError

QUANTILE = "quantile"
METHODS = (QUANTILE, "min-max", "mean-std")
BOUND = 7.0
"""How far from 0 the data may lie. Those of a normal distribution lie within 2.5 quantile ranges, of Laplace's 3.5."""
ROUNDING = 1e-6
"""Relative to its largest value, a spread within which a component is constant: several steps of float32."""
SMALLEST = 1e-8
"""A spread below which a component is constant whatever its unit."""


@dataclass(frozen=True)
class Normalizer:
    """Maps [low, high] to [-1, 1] per component. Values outside stay outside: what clips says how far it reaches."""

    low: tuple[float, ...]
    high: tuple[float, ...]

    def __post_init__(self) -> None:
        bad = [i for i, (a, b) in enumerate(zip(self.low, self.high, strict=True)) if not 0 < b - a < np.inf]
        if bad:
            low, high = self.low[bad[0]], self.high[bad[0]]
            raise InputError(f"cannot normalise component {bad[0]}: its range [{low}, {high}] is empty or not finite")

    @classmethod
    def fit(cls, statistics: Statistics, methods: Sequence[str] | str = QUANTILE) -> Normalizer:
        """The ranges of components with these statistics, by one method or each by its own.

        Raises InputError for a method that is unknown.
        """
        methods = [methods] * len(statistics.min) if isinstance(methods, str) else methods
        ranges = [_range(statistics, i, method) for i, method in enumerate(methods)]
        return cls(tuple(low for low, _ in ranges), tuple(high for _, high in ranges))

    def normalize(self, values: Float[np.ndarray, "*t a"]) -> Float[np.ndarray, "*t a"]:
        low, high = np.asarray(self.low), np.asarray(self.high)
        return 2 * (values - low) / (high - low) - 1

    def denormalize(self, values: Float[np.ndarray, "*t a"]) -> Float[np.ndarray, "*t a"]:
        low, high = np.asarray(self.low), np.asarray(self.high)
        return low + (values + 1) / 2 * (high - low)


def methods_of(names: Sequence[str], normalization: str | Mapping[str, str]) -> list[str]:
    """The method of each of the components `names`: one for all, or by name, quantiles where none is named."""
    by_name = dict.fromkeys(names, normalization) if isinstance(normalization, str) else dict(normalization)
    if bad := [method for method in by_name.values() if method not in METHODS]:
        raise InputError(f"there is no normalization {bad[0]!r}: choose {', '.join(METHODS)}")
    return [by_name.get(name, QUANTILE) for name in names]


def _range(statistics: Statistics, i: int, method: str) -> tuple[float, float]:
    lowest, highest = float(statistics.min[i]), float(statistics.max[i])
    if highest - lowest <= max(ROUNDING * max(abs(lowest), abs(highest)), SMALLEST):
        center = (lowest + highest) / 2
        return center - 1, center + 1
    if method == "mean-std":
        center = float(statistics.mean[i])
        reach = max(float(statistics.std[i]), max(highest - center, center - lowest) / BOUND)
        return center - reach, center + reach
    if method == QUANTILE:
        low, high = float(statistics.q01[i]), float(statistics.q99[i])
        center = (low + high) / 2
        if max(highest - center, center - lowest) <= BOUND * (high - low) / 2:
            return low, high
    elif method != "min-max":
        raise InputError(f"there is no normalization {method!r}: choose {', '.join(METHODS)}")
    return lowest, highest
