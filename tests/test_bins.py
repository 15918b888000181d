from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jaxtyping import Float, Int

from vla.actions.bins import UniformBins
from vla.actions.protocol import ActionTokenizer

BINS = st.builds(UniformBins, bins=st.integers(2, 512), limit=st.floats(0.5, 4))
CHUNKS = hnp.arrays(np.float64, st.tuples(st.integers(1, 5), st.integers(1, 4)), elements=st.floats(-1, 1))


@given(BINS, CHUNKS)
def test_round_trip_within_half_a_bin_inside_the_limit(bins: UniformBins, unit: Float[np.ndarray, "h a"]) -> None:
    actions = unit * bins.limit
    decoded = bins.decode(bins.encode(actions), actions.shape[1])
    assert decoded is not None
    np.testing.assert_allclose(decoded, actions, rtol=0, atol=bins.width / 2 * (1 + 1e-9))


@given(BINS, CHUNKS, st.floats(1, 1e6))
def test_beyond_the_limit_the_outermost_bin_is_meant(
    bins: UniformBins, unit: Float[np.ndarray, "h a"], far: float
) -> None:
    actions = np.sign(unit) * bins.limit * far
    decoded = bins.decode(bins.encode(actions), actions.shape[1])
    assert decoded is not None
    outside = actions != 0
    edge = bins.limit - bins.width / 2
    np.testing.assert_allclose(decoded[outside], np.sign(actions[outside]) * edge, atol=1e-9)


@given(BINS, st.data())
def test_every_token_decodes_to_a_value_that_encodes_to_it(bins: UniformBins, data: st.DataObject) -> None:
    tokens = np.array(data.draw(st.lists(st.integers(0, bins.vocab_size - 1), min_size=1, max_size=20)))
    decoded = bins.decode(tokens, 1)
    assert decoded is not None
    np.testing.assert_array_equal(bins.encode(decoded), tokens)


@given(BINS, hnp.arrays(np.int64, st.integers(0, 12)), st.integers(1, 4))
def test_decode_gives_whole_actions_or_none(bins: UniformBins, tokens: Int[np.ndarray, "n"], dim: int) -> None:
    decoded = bins.decode(tokens, dim)
    known = ((tokens >= 0) & (tokens < bins.vocab_size)).all()
    if len(tokens) and len(tokens) % dim == 0 and known:
        assert decoded is not None
        assert decoded.shape == (len(tokens) // dim, dim)
        assert (np.abs(decoded) < bins.limit).all()
    else:
        assert decoded is None


def test_tokens_run_through_time_with_a_steps_components_together() -> None:
    tokenizer: ActionTokenizer = UniformBins(bins=4, limit=1.0)
    actions = np.array([[-0.9, -0.1], [0.1, 0.9]])
    assert tokenizer.encode(actions).tolist() == [0, 1, 2, 3]
