"""Statistics: exact quantiles, bounds that keep normalisation bounded, and an exact round trip."""

from __future__ import annotations

import json
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from vla.common.statistics import LEVELS, Statistics, check_finite
from vla.errors import InputError

values = arrays(
    np.float64, st.tuples(st.integers(1, 60), st.integers(1, 4)), elements=st.floats(-1e6, 1e6, allow_subnormal=False)
)


@given(values)
def test_order_and_bounds(rows: np.ndarray) -> None:
    s = Statistics.of(rows)
    assert s.count == len(rows)
    assert (s.min <= s.mean).all() and (s.mean <= s.max).all() and (s.std >= 0).all()
    # Quantiles are the data's own: within its extremes, in order.
    assert (np.diff(np.stack([s.min, *s.quantiles, s.max]), axis=0) >= 0).all()


@given(values)
def test_order_of_rows_does_not_matter(rows: np.ndarray) -> None:
    shuffled = rows[np.random.default_rng(0).permutation(len(rows))]
    a, b = Statistics.of(rows), Statistics.of(shuffled)
    for name in ("q01", "q99", "min", "max"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    np.testing.assert_allclose(a.mean, b.mean, rtol=1e-9, atol=1e-6)
    assert a.hash() == b.hash()


awkward = st.sampled_from([0.0, -0.0, 5e-324, -5e-324, 1e-300, -1.0, np.nextafter(1.0, 2), 1.0, 1e100, -1e100, 0.3])


@given(arrays(np.float64, st.tuples(st.integers(1, 80), st.integers(1, 3)), elements=awkward), st.integers(1, 30))
def test_quantiles_are_those_of_all_rows_however_they_come(rows: np.ndarray, size: int) -> None:
    streamed = Statistics.over(lambda: (rows[i : i + size] for i in range(0, len(rows), size)))
    place = (len(rows) - 1) * np.array(LEVELS)
    ordered = np.sort(rows, axis=0)
    below, above = ordered[place // 100], ordered[np.minimum(place // 100 + 1, len(rows) - 1)]
    np.testing.assert_array_equal(streamed.quantiles, below + (above - below) * (place % 100 / 100)[:, None])
    assert streamed.hash() == Statistics.of(rows).hash()


def test_many_rows_in_many_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    rows = np.stack([rng.standard_cauchy(30_000), np.round(rng.normal(size=30_000), 1)], axis=1)
    monkeypatch.setattr("vla.common.statistics.BLOCK_ROWS", 1000)
    streamed = Statistics.over(lambda: np.array_split(rows, 77))
    np.testing.assert_allclose([streamed.q01, streamed.q99], np.quantile(rows, [0.01, 0.99], axis=0), rtol=1e-12)
    np.testing.assert_allclose([streamed.mean, streamed.std], [rows.mean(0), rows.std(0)], rtol=1e-9)


def test_statistics_of_two_stores_are_those_of_their_rows_together() -> None:
    rng = np.random.default_rng(0)
    near, far = rng.normal(0, 1, (9000, 1)), rng.normal(50, 1, (1000, 1))
    merged = Statistics.over(lambda: (near, far))
    assert merged.q99[0] == pytest.approx(np.quantile(np.concatenate([near, far]), 0.99), rel=1e-12)
    # The mean of the two quantiles, weighted by their rows, is a value that almost no row comes near.
    averaged = 0.9 * Statistics.of(near).q99 + 0.1 * Statistics.of(far).q99
    assert abs(averaged[0] - merged.q99[0]) > 40


def test_rows_are_held_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vla.common.statistics.BLOCK_ROWS", 4096)

    def rows(count: int) -> Statistics:
        return Statistics.over(lambda: (np.random.default_rng(i).normal(size=(512, 2)) for i in range(count)))

    peaks = []
    for count in (40, 400):
        tracemalloc.start()
        rows(count)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0]


@given(values)
def test_survives_json_exactly(rows: np.ndarray) -> None:
    s = Statistics.of(rows)
    again = Statistics.from_dict(json.loads(json.dumps(s.to_dict())))
    assert again.hash() == s.hash()
    assert again.q99.dtype == np.float64 and again.count == s.count


def test_hash_tells_statistics_apart() -> None:
    rows = np.arange(12.0).reshape(6, 2)
    changed = rows.copy()
    changed[5, 1] += 1e-12
    assert len({Statistics.of(r).hash() for r in (rows, changed, rows[:5])}) == 3


def test_quantiles_are_exact() -> None:
    s = Statistics.of(np.random.default_rng(0).permutation(np.arange(101.0))[:, None])
    assert (s.q01[0], s.q99[0], s.min[0], s.max[0], s.mean[0]) == (1, 99, 0, 100, 50)


def test_quantiles_of_a_constant_component_are_its_value() -> None:
    s = Statistics.of(np.full((50, 1), 0.3))
    assert (s.q01[0], s.q99[0], s.min[0], s.max[0]) == (0.3, 0.3, 0.3, 0.3)


@given(values, values)
def test_merging_keeps_what_can_be_kept_exactly(one: np.ndarray, other: np.ndarray) -> None:
    width = min(one.shape[1], other.shape[1])
    parts = [rows[:, :width] for rows in (one, other)]
    together, merged = Statistics.of(np.concatenate(parts)), Statistics.merged([Statistics.of(rows) for rows in parts])
    assert merged.count == together.count
    for name in ("min", "max"):
        np.testing.assert_array_equal(getattr(merged, name), getattr(together, name))
    scale = np.abs(np.concatenate(parts)).max() + 1e-9
    np.testing.assert_allclose(merged.mean, together.mean, atol=1e-9 * scale)
    np.testing.assert_allclose(merged.std, together.std, atol=1e-6 * scale)
    assert (np.diff(np.stack([merged.min, *merged.quantiles, merged.max]), axis=0) >= 0).all()


def test_merged_quantiles_are_near_those_of_all_data() -> None:
    rng = np.random.default_rng(0)
    near, far = rng.normal(0, 1, (90_000, 1)), rng.normal(6, 2, (30_000, 1))
    merged = Statistics.merged([Statistics.of(near), Statistics.of(far)])
    truth = Statistics.of(np.concatenate([near, far]))
    np.testing.assert_allclose(merged.quantiles, truth.quantiles, atol=0.35)
    alone = Statistics.of(near)
    np.testing.assert_allclose(Statistics.merged([alone, alone]).quantiles, alone.quantiles, atol=1e-12)


def test_nothing_to_count() -> None:
    with pytest.raises(InputError, match="at least one episode"):
        Statistics.of(np.zeros((0, 2)))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_named(bad: float) -> None:
    rows = np.zeros((5, 2))
    rows[3, 1] = bad
    with pytest.raises(InputError, match=r"episode 4, step 3: grip \[rad\] is not finite"):
        check_finite(rows, ("lift [rad]", "grip [rad]"), "episode 4")
    with pytest.raises(InputError, match="not finite"):
        Statistics.of(rows)
