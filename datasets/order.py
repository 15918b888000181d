"""The order in which a source's items are drawn: a shuffle that is computed, not stored.

The item at any position of any epoch is computed from (seed, epoch, position) in constant memory, so that any process
can continue any part of a run. Items that are adjacent on disk (a shard, an episode) are drawn close together in time,
so that a read cache stays effective.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Int, UInt64

from vla.errors import InputError

ROUNDS = 6
BLOCK = 64
"""Items per block, adjacent on disk."""
GROUP = 2048
"""Blocks that are shuffled together: up to 131,072 items are shuffled completely."""


class Order:
    """Maps draws 0, 1, 2, … to items: draws [e * items, (e + 1) * items) are epoch e, a permutation of all items.

    Blocks of `block` consecutive items are permuted and divided into groups of `group` blocks; the items of a group are
    permuted. All items of a block are thus drawn within `group * block` consecutive draws of an epoch, and a group is
    finished before the next one begins: a reader that caches `group` blocks reads each block once per epoch.

    Both permutations are Feistel networks over a power of four with cycle walking (Black and Rogaway 2002, sec. 4 and
    3).
    """

    def __init__(self, items: int, seed: int, block: int = BLOCK, group: int = GROUP) -> None:
        if items < 1 or block < 1 or group < 1:
            raise InputError(f"an order needs at least one item, block and group, not {items}, {block} and {group}")
        self._items, self._seed, self._block, self._group = items, seed, block, group
        self._blocks = -(-items // block)
        self._missing = self._blocks * block - items
        """The number of items that the last block lacks."""

    def __call__(self, draws: Int[np.ndarray, "n"]) -> Int[np.ndarray, "n"]:
        """The item of each draw."""
        epoch, position = np.divmod(draws, self._items)
        over_blocks = _keys(self._seed, epoch, np.zeros_like(epoch))
        blocks = np.full_like(position, self._blocks)
        # The position of the short block: positions after it are shifted by the missing items.
        short = feistel(np.full_like(position, self._blocks - 1), blocks, over_blocks, inverse=True)
        short_group, group_size = short // self._group, self._group * self._block
        ends = np.minimum((short_group + 1) * self._group, self._blocks) * self._block - self._missing
        moved = position + np.where(position >= ends, self._missing, 0)
        group = moved // group_size
        first = group * self._group
        size = np.minimum(self._group, self._blocks - first) * self._block
        size -= np.where(group == short_group, self._missing, 0)
        within = feistel(moved - group * group_size, size, _keys(self._seed, epoch, group + 1))
        behind = (group == short_group) & (within >= (short - first + 1) * self._block - self._missing)
        within += np.where(behind, self._missing, 0)
        slot, offset = np.divmod(within, self._block)
        return feistel(first + slot, blocks, over_blocks) * self._block + offset


def feistel(
    values: Int[np.ndarray, "n"], sizes: Int[np.ndarray, "n"], keys: UInt64[np.ndarray, "n"], inverse: bool = False
) -> Int[np.ndarray, "n"]:
    """The image of each value in [0, size) under the permutation of that size and key, or the inverse image."""
    # Half of the bits of the largest value, and at least two: the smallest network that mixes.
    half = np.maximum((np.frexp(sizes - 1.0)[1] + 1) // 2, 2).astype(np.uint64)
    out = values.astype(np.uint64)
    rounds = np.stack([_mix(keys + np.uint64(number)) for number in range(ROUNDS)])
    walking = np.arange(len(out))
    while len(walking):
        out[walking] = _network(out[walking], half[walking], rounds[:, walking], inverse)
        walking = walking[out[walking] >= sizes[walking].astype(np.uint64)]
    return out.astype(np.int64)


def _network(
    values: UInt64[np.ndarray, "n"], half: UInt64[np.ndarray, "n"], rounds: UInt64[np.ndarray, "r n"], inverse: bool
) -> UInt64[np.ndarray, "n"]:
    """A balanced Feistel network on 2 * `half` bits; `rounds` are the keys of each round."""
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = values >> half, values & mask
    for keys in reversed(rounds) if inverse else rounds:
        if inverse:
            left, right = right ^ (_mix(left + keys) & mask), left
        else:
            left, right = right, left ^ (_mix(right + keys) & mask)
    return (left << half) | right


def _keys(seed: int, epoch: Int[np.ndarray, "n"], permutation: Int[np.ndarray, "n"]) -> UInt64[np.ndarray, "n"]:
    key = np.full(len(epoch), seed % 2**64, np.uint64)
    for number in (epoch, permutation):
        key = _mix(_mix(key) + number.astype(np.uint64))
    return key


def _mix(values: UInt64[np.ndarray, "n"]) -> UInt64[np.ndarray, "n"]:
    """SplitMix64's step (Steele, Lea and Flood 2014): every bit of the result depends on every bit of the value."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
