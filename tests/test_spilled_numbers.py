"""Numbers of an episode in progress."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from vla.recording.spilled_numbers import HELD, SpilledNumbers


@pytest.mark.parametrize("count", [0, 1, HELD - 1, HELD, 3 * HELD + 5])
@pytest.mark.parametrize("in_memory", [False, True])
def test_all_are_read(tmp_path: Path, count: int, in_memory: bool) -> None:
    numbers = SpilledNumbers(None if in_memory else tmp_path)
    expected = np.random.default_rng(0).normal(size=count)
    for part in np.array_split(expected, 7):
        numbers.extend(part)
    assert len(numbers) == count
    np.testing.assert_array_equal(numbers.read(), expected)
    np.testing.assert_array_equal(numbers.read(), expected)


def test_more_may_follow_what_was_read(tmp_path: Path) -> None:
    numbers = SpilledNumbers(tmp_path)
    for value in (1.0, 2.0):
        numbers.extend(np.full(HELD, value))
        numbers.read()
    assert numbers.read().mean() == 1.5


def test_memory_does_not_grow_with_them(tmp_path: Path) -> None:
    numbers = SpilledNumbers(tmp_path)
    numbers.extend(np.zeros(2 * HELD))
    tracemalloc.start()
    for _ in range(100):
        numbers.extend(np.zeros(HELD // 2))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 3 * 8 * HELD
    assert list(tmp_path.iterdir()) == []
