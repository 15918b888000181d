"""Statistics that a few bad episodes do not move.

The median and the median absolute deviation stay near those of the good data while less than half are bad (Huber and
Ronchetti, Robust Statistics, 2009, sec. 5.1), but both drift when many are bad in the same way, as after a camera was
moved. What is taken from the shortest half of the values does not, up to nearly half.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int

MAD_TO_SIGMA = 1.4826
"""The standard deviation of a normal distribution over its median absolute deviation."""


def spread(values: Float[np.ndarray, "n"]) -> float:
    """The standard deviation of the bulk: the MAD, scaled."""
    return MAD_TO_SIGMA * float(np.median(np.abs(values - np.median(values))))


def core_spread(values: Float[np.ndarray, "n"]) -> float:
    """The standard deviation of the bulk by the width of the shortest half: also where nearly half of the values are
    shifted aside, where the MAD grows with the shift. Of few values it is enlarged, as of few it is small by accident
    (Rousseeuw and Leroy 1987, sec. 5.1: by 5 / (n - 1))."""
    ordered = np.sort(values)
    half = len(values) // 2 + 1
    width = float((ordered[half - 1 :] - ordered[: len(values) - half + 1]).min())
    return width / (2 * 0.6745) * (1 + 5 / max(len(values) - 1, 1))


def center(values: Float[np.ndarray, "n"]) -> float:
    """The mean of the shortest half of the values: near the mode, also where up to half are shifted aside (the shorth;
    Andrews et al. 1972)."""
    ordered = np.sort(values)
    half = len(values) // 2 + 1
    start = int((ordered[half - 1 :] - ordered[: len(values) - half + 1]).argmin())
    return float(ordered[start : start + half].mean())


def centers(values: Float[np.ndarray, "n c"]) -> Float[np.ndarray, "c"]:
    """The `center` of each column."""
    return np.array([center(column) for column in values.T])


def far_out(values: Float[np.ndarray, "n"], fences: float = 3.0) -> Bool[np.ndarray, "n"]:
    """Which values lie `fences` times the interquartile range beyond the quartiles: "far out" in a box plot at 3
    (Tukey 1977, sec. 2D). Of equal values none is."""
    low, high = np.quantile(values, [0.25, 0.75])
    margin = fences * (high - low)
    return (values < low - margin) | (values > high + margin)


def runs(mask: Bool[np.ndarray, "n"]) -> Int[np.ndarray, "r 2"]:
    """Where the mask is true for a while: the first and the one after the last of each run."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    return edges.reshape(-1, 2)
