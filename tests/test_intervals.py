from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla.common.intervals import always_valid, decided_after, mcnemar, paired_difference, wilson

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


@given(COUNTS)
def test_the_sequence_holds_the_rate_and_is_wider(counts: tuple[int, int]) -> None:
    successes, trials = counts
    low, high = always_valid(successes, trials)
    assert 0 <= low <= successes / trials <= high <= 1
    fixed = wilson(successes, trials)
    assert high - low > fixed[1] - fixed[0] - 1e-9


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_the_sequence_survives_peeking_where_wilson_does_not(rate: float) -> None:
    rng = np.random.default_rng(3)
    runs, length = 150, 200
    outcomes = rng.random((runs, length)) < rate
    refuted = [decided_after(run.tolist(), rate) for run in outcomes]
    # The rate is left out at some time in at most one run of twenty; the slack is three standard errors.
    assert np.mean([when is not None for when in refuted]) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / runs)
    counts = outcomes.cumsum(axis=1)
    ever = [any(not low <= rate <= high for low, high in map(wilson, c[9:].tolist(), range(10, 201))) for c in counts]
    assert np.mean(ever) > 0.1


def test_the_sequence_is_the_set_of_rates_that_betting_does_not_refute() -> None:
    outcomes = [True] * 7 + [False] * 2 + [True] * 11
    when = decided_after(outcomes, 0.5)
    assert when is not None and always_valid(sum(outcomes[:when]), when)[0] > 0.5
    assert always_valid(sum(outcomes[: when - 1]), when - 1)[0] <= 0.5
    assert decided_after(outcomes, 0.8) is None and always_valid(0, 0) == (0.0, 1.0)
    assert always_valid(0, 10)[0] == 0.0 and always_valid(10, 10)[1] == 1.0


def test_mcnemar_is_the_sign_test_of_the_pairs_that_differ() -> None:
    assert mcnemar(0, 0) == 1.0 and mcnemar(5, 5) == 1.0
    assert mcnemar(0, 5) == mcnemar(5, 0) == pytest.approx(2 / 32)
    assert mcnemar(1, 9) == pytest.approx(2 * (1 + 10) / 1024)


PAIRS = st.tuples(*[st.integers(0, 60)] * 4).filter(any)


@given(PAIRS)
def test_the_difference_lies_in_its_interval_and_turns_with_the_order(pairs: tuple[int, int, int, int]) -> None:
    both, first, second, neither = pairs
    low, high = paired_difference(*pairs)
    assert -1 <= low <= (first - second) / sum(pairs) <= high <= 1
    assert paired_difference(both, second, first, neither) == pytest.approx((-high, -low), abs=1e-12)


@pytest.mark.parametrize("chances", [(0.6, 0.2, 0.1, 0.1), (0.3, 0.1, 0.1, 0.5), (0.85, 0.05, 0.05, 0.05)])
def test_the_difference_is_in_the_interval_as_often_as_it_says(chances: tuple[float, ...]) -> None:
    draws = np.random.default_rng(5).multinomial(60, chances, size=400)
    spans = [paired_difference(*draw) for draw in draws.tolist()]
    covered = np.mean([low <= chances[1] - chances[2] <= high for low, high in spans])
    assert 0.91 < covered < 0.99
    assert paired_difference(0, 0, 0, 0) == (-1.0, 1.0)
