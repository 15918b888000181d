"""Normalisation of states and actions: each component's range is mapped to [-1, 1].

The range of a component is, by its method:

| method   | range                    | as in                                       |
|----------|--------------------------|---------------------------------------------|
| quantile | 1 % to 99 % of the data  | OpenVLA (sec. 3.2), pi0-FAST, openpi        |
| min-max  | smallest to largest      | ACT's and diffusion policy's datasets       |
| mean-std | mean - std to mean + std | ACT, SmolVLA and LeRobot's default          |

Two rules bound the result without losing motion:

- Where normalised data would exceed ±`BOUND`, the range is too narrow (a joint that hardly moves, but sometimes by a
  radian; a gripper that rarely opens). Quantiles are then replaced by the smallest and largest value, and a standard
  deviation is increased until the farthest value is at the bound.
- A component whose values are equal up to float32 rounding is constant. It normalises to 0, and later deviations keep
  their unit.

Training targets are clipped at ±`BOUND`, which the data from which the range was computed never exceed.
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
"""Largest absolute normalised value. Normally distributed data are within 2.5 quantile ranges, Laplace data in 3.5."""
ROUNDING = 1e-6
"""Spread relative to the largest value below which a component is constant: several float32 steps."""
SMALLEST = 1e-8
"""Absolute spread below which a component is constant, in any unit."""


@dataclass(frozen=True)
class Normalizer:
    """Maps [low, high] to [-1, 1] per component, without clipping."""

    low: tuple[float, ...]
    high: tuple[float, ...]

    def __post_init__(self) -> None:
        bad = [i for i, (a, b) in enumerate(zip(self.low, self.high, strict=True)) if not 0 < b - a < np.inf]
        if bad:
            low, high = self.low[bad[0]], self.high[bad[0]]
            raise InputError(f"cannot normalise component {bad[0]}: its range [{low}, {high}] is empty or not finite")

    @classmethod
    def fit(cls, statistics: Statistics, methods: Sequence[str] | str = QUANTILE) -> Normalizer:
        """The normaliser of components with these statistics, by one method or by one method per component.

        Raises:
            InputError: for an unknown method.
        """
        methods = [methods] * len(statistics.min) if isinstance(methods, str) else methods
        ranges = [_range(statistics, i, method) for i, method in enumerate(methods)]
        return cls(tuple(low for low, _ in ranges), tuple(high for _, high in ranges))

    def cut(self, count: int) -> Normalizer:
        """The normaliser of the first `count` components."""
        return Normalizer(self.low[:count], self.high[:count])

    def normalize(self, values: Float[np.ndarray, "*t a"]) -> Float[np.ndarray, "*t a"]:
        """Maps [low, high] to [-1, 1]."""
        low, high = np.asarray(self.low), np.asarray(self.high)
        return 2 * (values - low) / (high - low) - 1

    def denormalize(self, values: Float[np.ndarray, "*t a"]) -> Float[np.ndarray, "*t a"]:
        """The inverse of `normalize`."""
        low, high = np.asarray(self.low), np.asarray(self.high)
        return low + (values + 1) / 2 * (high - low)


def methods_of(names: Sequence[str], normalization: str | Mapping[str, str]) -> list[str]:
    """The method of each component in `names`.

    Args:
        normalization: one method for all, or methods by name, with quantiles as the default.

    Raises:
        InputError: for an unknown method.
    """
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
