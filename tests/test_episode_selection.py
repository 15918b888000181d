"""The option `episodes=`: which episodes a text selects."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla.datasets.episode_selection import episodes_of
from vla.errors import InputError


@given(st.lists(st.tuples(st.integers(0, 19), st.integers(0, 20)), min_size=1, max_size=5))
def test_episodes_are_the_union_of_what_is_named(parts: list[tuple[int, int]]) -> None:
    text = ", ".join(f"{first}:{end}" if first < end else str(first) for first, end in parts)
    named = {i for first, end in parts for i in (range(first, end) if first < end else (first,))}
    assert episodes_of(text, 20) == sorted(named)


def test_ends_of_a_range_can_be_left_out() -> None:
    assert (episodes_of(":", 4), episodes_of("2:", 4), episodes_of(":2", 4)) == ([0, 1, 2, 3], [2, 3], [0, 1])


@pytest.mark.parametrize("text", ["", "4", "1:5", "2:2", "3:1", "-1", "a", "1:2:3", "1,,2", "1.0"])
def test_episodes_that_are_not_there_or_cannot_be_read_are_named(text: str) -> None:
    with pytest.raises(InputError, match=f"episodes={text}"):
        episodes_of(text, 4)
