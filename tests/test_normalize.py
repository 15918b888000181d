from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jaxtyping import Float

from vla.errors import InputError
from vla.normalize import QuantileNormalizer

Range = list[tuple[float, float]]
# The lower bound and the extent of each component; the test itself makes the normaliser of them, since the
# checks of its types draw random numbers, which a strategy must not.
RANGES = st.lists(st.tuples(st.floats(-100, 100), st.floats(1e-3, 100)), min_size=3, max_size=3)
VALUES = hnp.arrays(np.float64, (4, 3), elements=st.floats(-200, 200))


def normalizer_of(ranges: Range) -> QuantileNormalizer:
    return QuantileNormalizer(tuple(low for low, _ in ranges), tuple(low + extent for low, extent in ranges))


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
    normalizer = QuantileNormalizer((0.0,), (2.0,))
    np.testing.assert_array_equal(normalizer.normalize(np.array([[-2.0], [4.0]])), [[-3.0], [3.0]])


@pytest.mark.parametrize(("low", "high"), [(1.0, 1.0), (2.0, 1.0), (float("nan"), 1.0), (0.0, float("inf"))])
def test_a_range_without_extent_names_its_component(low: float, high: float) -> None:
    with pytest.raises(InputError, match="component 1"):
        QuantileNormalizer((0.0, low), (1.0, high))
