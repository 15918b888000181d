"""Statistics of state and action components for normalisation, saved with the weights.

Quantiles are exact and use constant memory for any number of rows: a radix select reads the rows four times.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt64

from vla.errors import InputError

LEVELS = (1, 5, 25, 50, 75, 95, 99)
"""Levels of the quantiles [%]."""
DIGIT_BITS = 16
"""Bits of a 64-bit value that one pass over the rows determines."""
BLOCK_ROWS = 1 << 17
"""Rows in memory at a time."""

Blocks = Callable[[], Iterable[Float[np.ndarray, "_n c"]]]
"""Returns an iterator over the rows in blocks, with the same rows at every call."""


@dataclass(frozen=True, eq=False)
class Statistics:
    """Statistics of c components over `count` rows, in the components' units; `quantiles` are at `LEVELS`."""

    quantiles: Float[np.ndarray, "l c"]
    min: Float[np.ndarray, "c"]
    max: Float[np.ndarray, "c"]
    mean: Float[np.ndarray, "c"]
    std: Float[np.ndarray, "c"]
    count: int

    @classmethod
    def of(cls, values: Float[np.ndarray, "n c"]) -> Statistics:
        """Statistics over the rows. Raises InputError if there are none or a value is not finite."""
        return cls.over(lambda: (values,))

    @classmethod
    def over(cls, blocks: Blocks) -> Statistics:
        """Statistics over the rows of all blocks, with `BLOCK_ROWS` in memory at a time.

        For several stores, `blocks` must iterate over all of them: exact quantiles cannot be computed from those of the
        individual stores.

        Raises:
            InputError: There are no rows, or a value is not finite.
        """
        count, low, high, mean, std = _moments(_sized(blocks()))
        # Linear interpolation between the two values next to each quantile, as numpy.quantile.
        positions = [divmod((count - 1) * percent, 100) for percent in LEVELS]
        ranks = np.array([rank for index, _ in positions for rank in (index, min(index + 1, count - 1))])
        values = _select(blocks, ranks, len(low))
        hundredths = np.array([remainder for _, remainder in positions])[:, None]
        quantiles = values[::2] + (values[1::2] - values[::2]) * (hundredths / 100)
        # Rounding may move the mean of equal values outside their range.
        return cls(quantiles, low, high, np.clip(mean, low, high), std, count)

    @classmethod
    def merged(cls, parts: Sequence[Statistics]) -> Statistics:
        """Statistics of the union of several data sets, from their statistics alone.

        Count, extremes, mean and standard deviation are exact. Quantiles are approximate: they are those of the mixture
        of the distributions, each assumed to be linear between its known quantiles.
        """
        counts = np.array([part.count for part in parts], np.float64)
        means = np.stack([part.mean for part in parts])
        mean = np.average(means, axis=0, weights=counts)
        squares = np.average(np.stack([p.std**2 for p in parts]) + (means - mean) ** 2, axis=0, weights=counts)
        low, high = np.min([p.min for p in parts], axis=0), np.max([p.max for p in parts], axis=0)
        quantiles = np.stack([_mixed_quantiles([p._knots(i) for p in parts], counts) for i in range(len(mean))], axis=1)
        return cls(quantiles, low, high, np.clip(mean, low, high), np.sqrt(squares), int(counts.sum()))

    def _knots(self, i: int) -> Float[np.ndarray, "k"]:
        return np.concatenate([self.min[i : i + 1], self.quantiles[:, i], self.max[i : i + 1]])

    @property
    def q01(self) -> Float[np.ndarray, "c"]:
        """The 1 % quantile."""
        return self.quantiles[LEVELS.index(1)]

    @property
    def q99(self) -> Float[np.ndarray, "c"]:
        """The 99 % quantile."""
        return self.quantiles[LEVELS.index(99)]

    def to_dict(self) -> dict[str, Any]:
        """JSON values; floats survive exactly."""
        return {f.name: v.tolist() if isinstance(v := getattr(self, f.name), np.ndarray) else v for f in fields(self)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Statistics:
        """The inverse of `to_dict`."""
        arrays: dict[str, Any] = {k: np.asarray(v, np.float64) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**arrays)

    def hash(self) -> str:
        """SHA-256, in hex, of the count, the quantiles and the extremes.

        These do not depend on the order of rows or additions, so equal data have equal hashes on every machine.
        """
        exact = {name: value for name, value in self.to_dict().items() if name not in ("mean", "std")}
        return hashlib.sha256(json.dumps(exact, sort_keys=True).encode()).hexdigest()


def check_finite(values: Float[np.ndarray, "n c"], names: Sequence[str], where: str) -> None:
    """Raises InputError if a value is not finite; names `where`, the step and the component."""
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        step, component = (int(i) for i in bad[0])
        raise InputError(f"{where}, step {step}: {names[component]} is not finite: {values[step, component]}")


def _mixed_quantiles(knots: Sequence[Float[np.ndarray, "k"]], counts: Float[np.ndarray, "p"]) -> Float[np.ndarray, "l"]:
    """Quantiles of a mixture of distributions, each linear between its `knots` at 0, `LEVELS` and 100 %."""
    shares = np.array([0, *LEVELS, 100]) / 100
    levels = np.array(LEVELS) / 100 * counts.sum()
    low, high = np.repeat(min(k[0] for k in knots), len(levels)), np.repeat(max(k[-1] for k in knots), len(levels))
    for _ in range(64):  # bisection down to neighbouring floats
        middle = low + (high - low) / 2
        below = np.zeros(len(levels))
        for known, count in zip(knots, counts, strict=True):
            below += count * _share_below(middle, known, shares)
        low, high = np.where(below < levels, middle, low), np.where(below < levels, high, middle)
    return high


def _share_below(
    values: Float[np.ndarray, "l"], knots: Float[np.ndarray, "k"], shares: Float[np.ndarray, "k"]
) -> Float[np.ndarray, "l"]:
    """The cumulative distribution at each value; several equal knots are a step."""
    after = np.searchsorted(knots, values, side="right")
    index = np.clip(after, 1, len(knots) - 1)
    left, right = knots[index - 1], knots[index]
    fraction = np.where(right > left, (values - left) / np.where(right > left, right - left, 1.0), 1.0)
    share = shares[index - 1] + np.clip(fraction, 0, 1) * (shares[index] - shares[index - 1])
    return np.where(after == 0, 0.0, np.where(after == len(knots), 1.0, share))


def _sized(blocks: Iterable[Float[np.ndarray, "_n c"]]) -> Iterator[Float[np.ndarray, "_n c"]]:
    """The rows in blocks of about `BLOCK_ROWS`: short blocks are joined, long ones are split."""
    pending: list[np.ndarray] = []
    rows = 0
    for block in blocks:
        for start in range(0, len(block), BLOCK_ROWS):
            pending.append(np.asarray(block[start : start + BLOCK_ROWS], np.float64))
            rows += len(pending[-1])
            if rows >= BLOCK_ROWS:
                yield np.concatenate(pending)
                pending, rows = [], 0
    if pending:
        yield np.concatenate(pending)


def _moments(
    blocks: Iterable[Float[np.ndarray, "_n c"]],
) -> tuple[int, Float[np.ndarray, "c"], Float[np.ndarray, "c"], Float[np.ndarray, "c"], Float[np.ndarray, "c"]]:
    """Count, minimum, maximum, mean and standard deviation; blocks are merged as by Chan, Golub and LeVeque (1983)."""
    count = 0
    low = high = mean = squares = np.zeros(0)
    for block in blocks:
        check_finite(block, [str(i) for i in range(block.shape[1])], "statistics")
        total, block_mean = count + len(block), block.mean(axis=0)
        block_squares = ((block - block_mean) ** 2).sum(axis=0)
        if count == 0:
            low, high, mean, squares = block.min(axis=0), block.max(axis=0), block_mean, block_squares
        else:
            low, high = np.minimum(low, block.min(axis=0)), np.maximum(high, block.max(axis=0))
            delta = block_mean - mean
            mean = mean + delta * (len(block) / total)
            squares = squares + block_squares + delta**2 * (count * len(block) / total)
        count = total
    if count == 0:
        raise InputError("no values to compute statistics of: record at least one episode first")
    return count, low, high, mean, np.sqrt(squares / count)


def _select(blocks: Blocks, ranks: Int[np.ndarray, "r"], components: int) -> Float[np.ndarray, "r c"]:
    """The values of these ranks in each sorted component, by radix select.

    Each pass determines the next digit of each value, by a histogram over the values with the same preceding digits.
    """
    known = np.zeros((len(ranks), components), np.uint64)
    remaining = np.repeat(ranks[:, None], components, axis=1)
    for shift in range(64 - DIGIT_BITS, -1, -DIGIT_BITS):
        prefixes = [np.unique(known[:, i]) for i in range(components)]
        counts = [np.zeros((len(p), 1 << DIGIT_BITS), np.int64) for p in prefixes]
        for block in _sized(blocks()):
            for i in range(components):
                keys = _sortable(block[:, i]) >> np.uint64(shift)
                for row, prefix in zip(counts[i], prefixes[i], strict=True):
                    row += _digit_counts(keys, prefix, first=shift == 64 - DIGIT_BITS)
        for i in range(components):
            below = counts[i].cumsum(axis=1)
            for r in range(len(ranks)):
                row = below[np.searchsorted(prefixes[i], known[r, i])]
                digit = int(np.searchsorted(row, remaining[r, i], side="right"))
                remaining[r, i] -= row[digit - 1] if digit else 0
                known[r, i] = (known[r, i] << np.uint64(DIGIT_BITS)) | np.uint64(digit)
    return _unsortable(known)


def _digit_counts(keys: UInt64[np.ndarray, "n"], prefix: np.uint64, first: bool) -> Int[np.ndarray, "d"]:
    """Histogram of the last digit of the keys that start with `prefix`, or of all keys for the first digit."""
    matching = keys if first else keys[keys >> np.uint64(DIGIT_BITS) == prefix]
    digits = (matching & np.uint64((1 << DIGIT_BITS) - 1)).astype(np.int64)
    return np.bincount(digits, minlength=1 << DIGIT_BITS)


def _sortable(values: Float[np.ndarray, "n"]) -> UInt64[np.ndarray, "n"]:
    """Unsigned integers with the same order as the values: the bits of the floats, adjusted for the sign."""
    bits = (np.ascontiguousarray(values) + 0.0).view(np.uint64)  # adding 0 converts -0 to 0
    return np.where(bits >> np.uint64(63), ~bits, bits | np.uint64(1 << 63))


def _unsortable(keys: UInt64[np.ndarray, "r c"]) -> Float[np.ndarray, "r c"]:
    return np.where(keys >> np.uint64(63), keys & np.uint64((1 << 63) - 1), ~keys).view(np.float64)
