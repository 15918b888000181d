"""The order: a permutation an epoch, near in time what is near on disk, the same wherever one begins."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla.datasets.order import Order, feistel
from vla.errors import InputError

items, blocks, groups = st.integers(1, 300), st.integers(1, 40), st.integers(1, 12)


def epoch(order: Order, count: int, number: int = 0) -> np.ndarray:
    return order(np.arange(number * count, (number + 1) * count))


@given(items, blocks, groups, st.integers(0, 2**63), st.integers(0, 2**31))
def test_every_epoch_draws_every_item_once(count: int, block: int, group: int, seed: int, number: int) -> None:
    drawn = epoch(Order(count, seed, block, group), count, number)
    np.testing.assert_array_equal(np.sort(drawn), np.arange(count))


@given(items, blocks, groups, st.integers(0, 2**31))
def test_a_block_is_drawn_within_a_group_of_blocks(count: int, block: int, group: int, seed: int) -> None:
    drawn = epoch(Order(count, seed, block, group), count) // block
    where = [np.flatnonzero(drawn == number) for number in range(-(-count // block))]
    assert all(places[-1] - places[0] < group * block for places in where)
    # A reader that keeps a block from its first item to its last keeps no more than a group.
    held = np.zeros(count, int)
    for places in where:
        held[places[0] : places[-1] + 1] += 1
    assert held.max() <= group


@given(items, blocks, groups, st.lists(st.integers(0, 2**40), min_size=1, max_size=20))
def test_a_draw_does_not_depend_on_its_company(count: int, block: int, group: int, draws: list[int]) -> None:
    order = Order(count, 7, block, group)
    assert order(np.array(draws))[-1:].tolist() == order(np.array(draws[-1:])).tolist()


def test_epochs_and_seeds_differ() -> None:
    orders = [epoch(Order(200, seed, 8, 5), 200, number).tolist() for seed in (0, 1) for number in (0, 1)]
    assert all(one != other for i, one in enumerate(orders) for other in orders[:i])


@pytest.mark.parametrize(("count", "block", "group"), [(7, 64, 2048), (100, 8, 100), (100, 8, 3)])
def test_every_item_comes_up_everywhere(count: int, block: int, group: int) -> None:
    drawn = Order(count, 3, block, group)(np.arange(3000 * count)).reshape(3000, count)
    first, pairs = drawn[:, 0], drawn[:, 1] - drawn[:, 0]
    expected = 3000 / count
    # The last block is short where 8 does not divide 100: its items come first no more often than their share.
    counts = np.bincount(first, minlength=count)
    assert ((counts - expected) ** 2 / expected).sum() < count + 8 * (2 * count) ** 0.5
    assert abs(first.mean() - (count - 1) / 2) < 4 * count / 12**0.5 / 3000**0.5
    assert abs((pairs > 0).mean() - 0.5) < 0.05


@given(st.integers(1, 500), st.integers(0, 2**63))
def test_the_network_is_undone_by_its_inverse(size: int, key: int) -> None:
    values, sizes, keys = np.arange(size), np.full(size, size), np.full(size, key, np.uint64)
    image = feistel(values, sizes, keys)
    np.testing.assert_array_equal(np.sort(image), values)
    np.testing.assert_array_equal(feistel(image, sizes, keys, inverse=True), values)


def test_a_billion_items_take_no_longer_than_ten() -> None:
    order = Order(10**9 + 7, 0)
    start = time.perf_counter()
    drawn = order(np.arange(10**9 - 500, 10**9 + 500))
    assert time.perf_counter() - start < 1
    assert len(set(drawn[:507].tolist())) == 507 and drawn.max() < 10**9 + 7


@pytest.mark.parametrize(("count", "block", "group"), [(0, 1, 1), (1, 0, 1), (1, 1, 0)])
def test_an_empty_order_is_refused(count: int, block: int, group: int) -> None:
    with pytest.raises(InputError, match="at least one"):
        Order(count, 0, block, group)
