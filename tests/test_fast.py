"""FAST against the published algorithm, written here from its description; and what it promises of any chunk."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
from fast_files import published, published_ids
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jaxtyping import Float
from scipy.fft import dct, idct
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from vla.errors import InputError
from vla.models.action_tokenizers.action_tokenizer import ActionTokenizer
from vla.models.action_tokenizers.fast import FastTokenizer

HORIZON, DIM = 8, 3


def smooth(count: int, seed: int) -> Float[np.ndarray, "b h a"]:
    """Chunks as a robot makes them: each component wanders from where it is."""
    rng = np.random.default_rng(seed)
    steps = rng.normal(scale=0.15, size=(count, HORIZON, DIM)).cumsum(axis=1)
    return np.clip(steps + rng.uniform(-0.8, 0.8, (count, 1, DIM)), -1, 1)


@cache
def ours() -> FastTokenizer:
    """Its coefficients reach as far as those of any chunk in [-1, 1], whatever is in the data beside."""
    extremes = np.ones((2, HORIZON, DIM)) * np.array([1, -1])[:, None, None]
    return FastTokenizer.train(lambda: [smooth(200, 0), smooth(100, 1), extremes], vocab_size=512)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("scale", [10, 40])  # of 40, coefficients take two bytes
def test_published_files_encode_to_the_bit(dtype: type, scale: int, tmp_path: Path) -> None:
    reference = published(tmp_path, scale, smooth(300, 0))
    tokenizer = FastTokenizer.load(tmp_path)
    for chunk in smooth(100, 2).astype(dtype) * 1.2:
        assert tokenizer.encode(chunk).tolist() == published_ids(reference, chunk, tokenizer.min_token, scale)
    for chunk in smooth(300, 0)[:20]:  # what it was trained on
        decoded = tokenizer.decode(tokenizer.encode(chunk), HORIZON, DIM)
        assert decoded is not None and np.abs(decoded - chunk).max() <= tokenizer.error_bound(HORIZON)


def test_ours_encodes_as_the_published_processor_would_with_the_same_file(tmp_path: Path) -> None:
    ours().save(tmp_path)
    reference = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    lengths = []
    for chunk in smooth(50, 3):
        ids = ours().encode(chunk)
        assert ids.tolist() == published_ids(reference, chunk, ours().min_token, 10)
        lengths.append(len(ids))
    assert np.mean(lengths) < 0.6 * HORIZON * DIM


CHUNKS = hnp.arrays(np.float64, (HORIZON, DIM), elements=st.floats(-1, 1))


@given(CHUNKS)
@example(np.ones((HORIZON, DIM)))
@example(np.where(np.arange(HORIZON)[:, None] % 2 == 0, 1.0, -1.0) * np.ones(DIM))
def test_round_trip_within_the_stated_error(chunk: Float[np.ndarray, "h a"]) -> None:
    tokenizer: ActionTokenizer = ours()
    tokens = tokenizer.encode(chunk)
    assert ((tokens >= 0) & (tokens < tokenizer.vocab_size)).all()
    decoded = tokenizer.decode(tokens, HORIZON, DIM)
    assert decoded is not None
    assert np.abs(decoded - chunk).max() <= ours().error_bound(HORIZON) + 1e-9


def test_the_stated_error_is_nearly_reached() -> None:
    """Every coefficient off by half a unit, each with the sign that the first value sees it with."""
    basis = dct(np.eye(HORIZON), axis=0, norm="ortho")[:, 0]
    chunk = idct(0.499 * np.sign(basis) / 10, norm="ortho")[:, None] * np.ones(DIM)
    decoded = ours().decode(ours().encode(chunk), HORIZON, DIM)
    assert decoded is not None
    assert np.abs(decoded - chunk).max() > 0.85 * ours().error_bound(HORIZON)


@given(hnp.arrays(np.float64, (HORIZON, DIM), elements=st.floats(-1e6, 1e6)))
def test_beyond_the_range_coefficients_are_clipped(chunk: Float[np.ndarray, "h a"]) -> None:
    decoded = ours().decode(ours().encode(chunk), HORIZON, DIM)
    assert decoded is not None
    coefficients = dct(decoded, axis=0, norm="ortho") * 10
    wanted = np.clip(np.around(dct(chunk, axis=0, norm="ortho") * 10), ours().min_token, ours().max_token)
    np.testing.assert_allclose(coefficients, wanted, atol=1e-6)


ANY_TOKENS = st.lists(st.integers(-5, 600) | st.integers(-(2**62), 2**62), max_size=30).map(np.array)


@given(ANY_TOKENS | hnp.arrays(np.float64, st.integers(0, 9)), st.integers(0, 9), st.integers(0, 4))
def test_decode_never_raises(tokens: np.ndarray, horizon: int, dim: int) -> None:
    decoded = ours().decode(tokens, horizon, dim)
    assert decoded is None or decoded.shape == (horizon, dim)


@given(CHUNKS, st.data())
def test_what_is_not_exactly_the_chunk_is_none(chunk: Float[np.ndarray, "h a"], data: st.DataObject) -> None:
    tokens = ours().encode(chunk)
    assert ours().decode(tokens[:-1], HORIZON, DIM) is None
    assert ours().decode(np.append(tokens, tokens[0]), HORIZON, DIM) is None
    assert ours().decode(tokens, HORIZON + 1, DIM) is None
    spoilt = tokens.astype(np.float64)
    spoilt[data.draw(st.integers(0, len(tokens) - 1))] += data.draw(st.sampled_from([0.5, -1e9, 1e9, np.nan, np.inf]))
    assert ours().decode(spoilt, HORIZON, DIM) is None
    again = ours().decode(tokens, HORIZON, DIM)  # what came before leaves nothing behind
    assert again is not None and np.abs(again - chunk).max() <= ours().error_bound(HORIZON) + 1e-9


def test_half_a_character_of_published_files_is_none(tmp_path: Path) -> None:
    published(tmp_path, 40, smooth(300, 0))
    tokenizer = FastTokenizer.load(tmp_path)
    lone = Tokenizer.from_file(str(tmp_path / "tokenizer.json")).token_to_id("Â")
    assert lone is not None and tokenizer.decode(np.array([lone]), 1, 1) is None


def test_trained_twice_is_the_same_and_survives_its_files(tmp_path: Path) -> None:
    def train() -> FastTokenizer:
        return FastTokenizer.train(lambda: [smooth(100, 5)], vocab_size=300, scale=5)

    tokenizer = train()
    tokenizer.save(tmp_path)
    loaded = FastTokenizer.load(tmp_path)
    assert train().bpe.to_str() == tokenizer.bpe.to_str() == loaded.bpe.to_str()
    fields = ("scale", "min_token", "max_token", "vocab_size")
    assert [getattr(loaded, f) for f in fields] == [getattr(tokenizer, f) for f in fields]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fast.json", "tokenizer.json"]


def test_bad_input_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no chunks"):
        FastTokenizer.train(lambda: [np.zeros((0, 4, 2))])
    far = smooth(10, 0)
    far[3, 2, 1] = 500.0
    with pytest.raises(InputError, match="more than the 1024 tokens: look for outliers"):
        FastTokenizer.train(lambda: [far])
    with pytest.raises(InputError, match="holds no FAST tokenizer"):
        FastTokenizer.load(tmp_path)
    (tmp_path / "fast.json").write_text("{}")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match="cannot be read"):
        FastTokenizer.load(tmp_path)
