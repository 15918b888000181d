from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jaxtyping import Float, Int

from vla.models.action_tokenizers.action_tokenizer import ActionTokenizer
from vla.models.action_tokenizers.bins import OpenVLABins, UniformBins

BINS = st.builds(UniformBins, bins=st.integers(2, 512), limit=st.floats(0.5, 4))
CHUNKS = hnp.arrays(np.float64, st.tuples(st.integers(1, 5), st.integers(1, 4)), elements=st.floats(-1, 1))


@given(BINS, CHUNKS)
def test_round_trip_within_half_a_bin_inside_the_limit(bins: UniformBins, unit: Float[np.ndarray, "h a"]) -> None:
    actions = unit * bins.limit
    decoded = bins.decode(bins.encode(actions), *actions.shape)
    assert decoded is not None
    np.testing.assert_allclose(decoded, actions, rtol=0, atol=bins.width / 2 * (1 + 1e-9))


@given(BINS, CHUNKS, st.floats(1, 1e6))
def test_beyond_the_limit_the_outermost_bin_is_meant(
    bins: UniformBins, unit: Float[np.ndarray, "h a"], far: float
) -> None:
    actions = np.sign(unit) * bins.limit * far
    decoded = bins.decode(bins.encode(actions), *actions.shape)
    assert decoded is not None
    outside = actions != 0
    edge = bins.limit - bins.width / 2
    np.testing.assert_allclose(decoded[outside], np.sign(actions[outside]) * edge, atol=1e-9)


@given(BINS, st.data())
def test_every_token_decodes_to_a_value_that_encodes_to_it(bins: UniformBins, data: st.DataObject) -> None:
    tokens = np.array(data.draw(st.lists(st.integers(0, bins.vocab_size - 1), min_size=1, max_size=20)))
    decoded = bins.decode(tokens, len(tokens), 1)
    assert decoded is not None
    np.testing.assert_array_equal(bins.encode(decoded), tokens)


@given(BINS | st.just(OpenVLABins()), hnp.arrays(np.int64, st.integers(0, 12)), st.integers(0, 5), st.integers(1, 4))
def test_decode_gives_the_horizons_actions_or_none(
    bins: UniformBins | OpenVLABins, tokens: Int[np.ndarray, "n"], horizon: int, dim: int
) -> None:
    decoded = bins.decode(tokens, horizon, dim)
    known = ((tokens >= 0) & (tokens < bins.vocab_size)).all()
    if len(tokens) == horizon * dim > 0 and known:
        assert decoded is not None
        assert decoded.shape == (horizon, dim)
        assert (np.abs(decoded) < getattr(bins, "limit", 1.0)).all()
    else:
        assert decoded is None


def test_tokens_run_through_time_with_a_steps_components_together() -> None:
    tokenizer: ActionTokenizer = UniformBins(bins=4, limit=1.0)
    actions = np.array([[-0.9, -0.1], [0.1, 0.9]])
    assert tokenizer.encode(actions).tolist() == [0, 1, 2, 3]


def openvla_rows(action: Float[np.ndarray, "h a"], vocabulary: int) -> Int[np.ndarray, "h a"]:
    """The published steps: which edge each clipped value is at or past, counted down from the vocabulary's end."""
    return vocabulary - np.digitize(np.clip(action, -1, 1), np.linspace(-1, 1, 256))


def openvla_actions(rows: Int[np.ndarray, "h a"], vocabulary: int) -> Float[np.ndarray, "h a"]:
    edges = np.linspace(-1, 1, 256)
    return ((edges[:-1] + edges[1:]) / 2.0)[np.clip(vocabulary - rows - 1, 0, 254)]


EDGES_AND_BEYOND = st.floats(-1.5, 1.5) | st.sampled_from([*np.linspace(-1, 1, 256), -1.0, 1.0])
OPENVLA_CHUNKS = hnp.arrays(np.float64, st.tuples(st.integers(1, 5), st.integers(1, 7)), elements=EDGES_AND_BEYOND)


@given(OPENVLA_CHUNKS)
def test_openvla_rows_and_actions_to_the_bit(actions: Float[np.ndarray, "h a"]) -> None:
    bins, vocabulary = OpenVLABins(), 32000
    tokens = bins.encode(actions)
    rows = openvla_rows(actions, vocabulary)
    np.testing.assert_array_equal(tokens + vocabulary - bins.vocab_size, rows.reshape(-1))
    decoded = bins.decode(tokens, *actions.shape)
    assert decoded is not None
    np.testing.assert_array_equal(decoded, openvla_actions(rows, vocabulary))
    np.testing.assert_allclose(decoded, np.clip(actions, -1, 1), rtol=0, atol=1 / 255 + 1e-12)


def test_openvla_has_one_centre_less_than_tokens() -> None:
    bins: ActionTokenizer = OpenVLABins()
    decoded = bins.decode(np.arange(256), 256, 1)
    assert decoded is not None
    assert decoded[0, 0] == decoded[1, 0] and len(np.unique(decoded)) == 255
    between = bins.decode(np.array([7.5]), 1, 1)
    assert between is not None
    np.testing.assert_allclose(between, decoded[7:9].mean(keepdims=True))
