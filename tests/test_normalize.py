from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jaxtyping import Float

from vla.common.statistics import Statistics
from vla.errors import InputError
from vla.models.action_tokenizers.bins import UniformBins
from vla.models.normalization import BOUND, METHODS, Normalizer, methods_of

Range = list[tuple[float, float]]
# The lower bound and the extent of each component; the test itself makes the normaliser of them, since the
# checks of its types draw random numbers, which a strategy must not.
RANGES = st.lists(st.tuples(st.floats(-100, 100), st.floats(1e-3, 100)), min_size=3, max_size=3)
VALUES = hnp.arrays(np.float64, (4, 3), elements=st.floats(-200, 200))


def normalizer_of(ranges: Range) -> Normalizer:
    return Normalizer(tuple(low for low, _ in ranges), tuple(low + extent for low, extent in ranges))


@given(RANGES, VALUES)
def test_denormalize_undoes_normalize(ranges: Range, values: Float[np.ndarray, "t a"]) -> None:
    normalizer = normalizer_of(ranges)
    np.testing.assert_allclose(normalizer.denormalize(normalizer.normalize(values)), values, rtol=1e-9, atol=1e-9)


@given(RANGES)
def test_the_quantiles_become_minus_one_and_one(ranges: Range) -> None:
    normalizer = normalizer_of(ranges)
    bounds = np.array([normalizer.low, normalizer.high])
    np.testing.assert_allclose(normalizer.normalize(bounds), [[-1] * 3, [1] * 3], atol=1e-9)


@given(RANGES, VALUES)
def test_one_row_is_normalised_as_among_others(ranges: Range, values: Float[np.ndarray, "t a"]) -> None:
    normalizer = normalizer_of(ranges)
    np.testing.assert_array_equal(normalizer.normalize(values)[1], normalizer.normalize(values[1]))


def test_values_outside_stay_outside() -> None:
    normalizer = Normalizer((0.0,), (2.0,))
    np.testing.assert_array_equal(normalizer.normalize(np.array([[-2.0], [4.0]])), [[-3.0], [3.0]])


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.0), (2.0, 1.0), (float("nan"), 1.0), (0.0, float("inf"))])
def test_a_range_without_extent_names_its_component(low: float, high: float) -> None:
    with pytest.raises(InputError, match="component 1"):
        Normalizer((0.0, low), (1.0, high))


def fitted(rows: Float[np.ndarray, "n c"], method: str) -> Normalizer:
    return Normalizer.fit(Statistics.of(rows), method)


SCALES = st.floats(1e-5, 1e5)


@given(st.sampled_from(METHODS), SCALES, st.integers(20, 3000), st.integers(0, 2**31))
def test_what_rarely_moves_stays_bounded_and_keeps_its_motion(method: str, size: float, count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = size * 1e-4 * rng.uniform(-1, 1, (count, 1))
    rows[rng.integers(count)] = size
    normalizer = fitted(rows, method)
    normalized = normalizer.normalize(rows)
    assert np.abs(normalized).max() <= BOUND * (1 + 1e-9)
    # The move is far from rest, and comes back.
    assert normalized.max() - np.median(normalized) > 1
    np.testing.assert_allclose(normalizer.denormalize(np.clip(normalized, -BOUND, BOUND)), rows, atol=1e-9 * size)


def test_a_rare_move_by_a_radian_lies_within_the_bins() -> None:
    rows = np.random.default_rng(0).uniform(-5e-4, 5e-4, (1000, 1))
    rows[7] = 1.0
    normalizer, bins = fitted(rows, "quantile"), UniformBins()
    tokens = bins.encode(normalizer.normalize(rows))
    decoded = bins.decode(tokens, len(rows), 1)
    assert decoded is not None
    np.testing.assert_allclose(normalizer.denormalize(decoded), rows, atol=bins.width)


@given(st.sampled_from(METHODS), st.floats(1e-6, 9e-5))
def test_small_deltas_are_no_constants(method: str, size: float) -> None:
    rows = size * np.random.default_rng(0).uniform(-1, 1, (500, 1))
    assert np.ptp(fitted(rows, method).normalize(rows)) > 1


@given(st.sampled_from(METHODS), st.floats(-1e3, 1e3))
def test_a_constant_component_normalises_to_zero_and_keeps_its_unit(method: str, value: float) -> None:
    rows = np.full((50, 1), value, np.float32).astype(np.float64)
    rows[::2] = np.nextafter(rows[::2].astype(np.float32), np.float32(np.inf)).astype(np.float64)
    normalizer = fitted(rows, method)
    np.testing.assert_allclose(normalizer.normalize(rows), 0, atol=1e-3)
    np.testing.assert_allclose(normalizer.normalize(rows[:1] + 0.5), 0.5, atol=1e-3)


def test_ranges_are_those_of_the_method() -> None:
    rows = np.random.default_rng(0).normal(3, 2, (10_000, 3))
    normalizer = Normalizer.fit(Statistics.of(rows), ["quantile", "min-max", "mean-std"])
    low, high = np.array(normalizer.low), np.array(normalizer.high)
    np.testing.assert_allclose([low[0], high[0]], np.quantile(rows[:, 0], [0.01, 0.99]))
    np.testing.assert_allclose([low[1], high[1]], [rows[:, 1].min(), rows[:, 1].max()])
    np.testing.assert_allclose([low[2], high[2]], rows[:, 2].mean() + rows[:, 2].std() * np.array([-1, 1]))


def test_a_method_is_chosen_by_component() -> None:
    assert methods_of(("a", "b"), {"b": "mean-std"}) == ["quantile", "mean-std"]
    assert methods_of(("a", "b"), "min-max") == ["min-max", "min-max"]
    with pytest.raises(InputError, match="'max'.*quantile, min-max, mean-std"):
        methods_of(("a",), "max")
