"""Statistics that are robust against a minority of bad episodes.

The median and the median absolute deviation (MAD) are robust while less than half of the data are bad (Huber and
Ronchetti, Robust Statistics, 2009, sec. 5.1), but both are biased if many are bad in the same way, as after a camera
was moved. Statistics of the shortest half of the values are not biased by almost half of bad values.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int

MAD_TO_SIGMA = 1.4826
"""Ratio of the standard deviation to the median absolute deviation for a normal distribution."""


def spread(values: Float[np.ndarray, "n"]) -> float:
    """A robust standard deviation: the scaled MAD."""
    return MAD_TO_SIGMA * float(np.median(np.abs(values - np.median(values))))


def core_spread(values: Float[np.ndarray, "n"]) -> float:
    """A robust standard deviation from the width of the shortest half of the values.

    It is unbiased even if almost half of the values are shifted, unlike the MAD. For few values it is corrected by the
    factor 1 + 5 / (n - 1) (Rousseeuw and Leroy 1987, sec. 5.1).
    """
    ordered = np.sort(values)
    half = len(values) // 2 + 1
    width = float((ordered[half - 1 :] - ordered[: len(values) - half + 1]).min())
    return width / (2 * 0.6745) * (1 + 5 / max(len(values) - 1, 1))


def center(values: Float[np.ndarray, "n"]) -> float:
    """The mean of the shortest half of the values (the shorth, Andrews et al. 1972).

    It is close to the mode even if up to half of the values are shifted.
    """
    ordered = np.sort(values)
    half = len(values) // 2 + 1
    start = int((ordered[half - 1 :] - ordered[: len(values) - half + 1]).argmin())
    return float(ordered[start : start + half].mean())


def centers(values: Float[np.ndarray, "n c"]) -> Float[np.ndarray, "c"]:
    """The `center` of each column."""
    return np.array([center(column) for column in values.T])


def far_out(values: Float[np.ndarray, "n"], fences: float = 3.0) -> Bool[np.ndarray, "n"]:
    """Which values are more than `fences` interquartile ranges outside the quartiles (Tukey 1977, sec. 2D)."""
    low, high = np.quantile(values, [0.25, 0.75])
    margin = fences * (high - low)
    return (values < low - margin) | (values > high + margin)


def runs(mask: Bool[np.ndarray, "n"]) -> Int[np.ndarray, "r 2"]:
    """The runs of true values: start (inclusive) and stop (exclusive) of each."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], mask, [False]]).astype(np.int8)))
    return edges.reshape(-1, 2)
