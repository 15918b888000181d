from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla.evaluation.intervals import wilson

COUNTS = st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@given(COUNTS)
def test_the_interval_holds_the_rate_and_lies_in_the_unit_interval(counts: tuple[int, int]) -> None:
    successes, trials = counts
    low, high = wilson(successes, trials)
    assert 0 <= low <= successes / trials <= high <= 1
    assert low < high


@given(COUNTS, st.integers(2, 9))
def test_the_interval_shrinks_with_more_trials(counts: tuple[int, int], factor: int) -> None:
    successes, trials = counts
    low, high = wilson(successes, trials)
    closer_low, closer_high = wilson(successes * factor, trials * factor)
    assert closer_high - closer_low < high - low


@given(COUNTS)
def test_failures_mirror_successes(counts: tuple[int, int]) -> None:
    successes, trials = counts
    low, high = wilson(successes, trials)
    assert wilson(trials - successes, trials) == pytest.approx((1 - high, 1 - low), abs=1e-12)


def test_known_values() -> None:
    # Newcombe 1998, table I: 81 of 263, and 0 of 20.
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson(0, 0) == (0.0, 1.0)
