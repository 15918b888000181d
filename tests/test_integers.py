from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jaxtyping import Float
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from vla.errors import InputError
from vla.models.action_tokenizers.integers import IntegerText, allowed_tokens, digit_tokens, mask_digits
from vla.models.backbones.nano import train_tokenizer

CODECS = st.builds(IntegerText, steps=st.integers(1, 5000), limit=st.floats(0.5, 2))
CHUNKS = hnp.arrays(np.float64, st.tuples(st.integers(1, 5), st.integers(1, 4)), elements=st.floats(-1, 1))


def byte_level() -> Tokenizer:
    return train_tokenizer(["lift the ring 12 500 1000 0 37 <", "500 500 500 12 12 12"] * 3, vocab_size=400)


def metaspace() -> Tokenizer:
    """As SentencePiece's: a word's first token carries its space, which is lost at a text's start."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    trainer = trainers.BpeTrainer(
        special_tokens=["<unk>", *(f"<0x{i:02X}>" for i in range(256))], vocab_size=320, show_progress=False
    )
    tokenizer.train_from_iterator(["lift it 12 500 1000 0 37 46 89", "500 500 500 12 12 12"] * 3, trainer)
    return tokenizer


def words() -> Tokenizer:
    return Tokenizer(models.WordLevel({"<unk>": 0, "500": 1, "lift": 2}, unk_token="<unk>"))


@given(CODECS, CHUNKS)
def test_round_trip_within_the_stated_error(codec: IntegerText, unit: Float[np.ndarray, "h a"]) -> None:
    actions = unit * codec.limit
    text = codec.encode(actions)
    assert set(text) <= set("0123456789 ")
    decoded = codec.decode(text, *actions.shape)
    assert decoded is not None
    np.testing.assert_allclose(decoded, actions, rtol=0, atol=codec.error_bound * (1 + 1e-9))
    assert codec.encode(decoded) == text


def test_integers_run_through_time_and_are_clipped() -> None:
    actions = np.array([[-1.0, 0.0], [1.0, 0.5], [-7.0, 7.0]])
    assert IntegerText().encode(actions) == "0 500 1000 750 0 1000"


@given(CODECS, st.text() | st.text("0123456789 -+.,\n_٣"), st.integers(0, 5), st.integers(0, 4))
def test_decode_never_raises(codec: IntegerText, text: str, horizon: int, dim: int) -> None:
    decoded = codec.decode(text, horizon, dim)
    if decoded is not None:
        assert decoded.shape == (horizon, dim)
        assert np.abs(decoded).max() <= codec.limit * (1 + 1e-9)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1 2 3",
        "1 2 3 4 5",
        "1 2 3 1001",
        "1 2 3 -4",
        "1 2 3 4.0",
        "1 2 3\n4",
        "1,2,3,4",
        "1 2 3 ٣",
        "1 2 3 " + "9" * 5000,
    ],
)
def test_what_is_not_the_chunk_is_none(text: str) -> None:
    assert IntegerText().decode(text, 2, 2) is None
    assert IntegerText().decode(" 1 2  3 1000 ", 2, 2) is not None


@pytest.mark.parametrize("make", [byte_level, metaspace])
def test_allowed_tokens_write_every_chunk_and_nothing_else(make: Callable[[], Tokenizer]) -> None:
    tokenizer = make()
    allowed, codec, rng = allowed_tokens(tokenizer), IntegerText(), np.random.default_rng(0)
    for _ in range(20):
        text = codec.encode(rng.uniform(-1, 1, (4, 3)))
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert set(ids) <= set(allowed.tolist())
        assert tokenizer.decode(ids).strip() == text
    for token in allowed.tolist():
        assert set(tokenizer.decode([*tokenizer.encode("7").ids, token])) <= set("0123456789 ")
    said = {tokenizer.id_to_token(token) for token in allowed.tolist()}
    assert not any(set("lifthe<>") & set(token) for token in said if not token.startswith("<0x"))


def test_a_tokenizer_that_cannot_write_them_is_refused() -> None:
    with pytest.raises(InputError, match="no token of digits and spaces for"):
        allowed_tokens(words())


def test_a_share_of_the_digits_is_masked_and_nothing_else() -> None:
    tokenizer = byte_level()
    text = IntegerText().encode(np.random.default_rng(0).uniform(-1, 1, (200, 6)))
    ids = np.array(tokenizer.encode(f"lift the ring {text}").ids)
    digits, mask_id = digit_tokens(tokenizer), tokenizer.token_to_id("<")
    masked = mask_digits(ids, digits, mask_id, np.random.default_rng(1))
    changed = masked != ids
    assert (masked[changed] == mask_id).all() and digits[ids[changed]].all()
    assert abs(changed[digits[ids]].mean() - 0.4) < 0.05
    np.testing.assert_array_equal(masked, mask_digits(ids, digits, mask_id, np.random.default_rng(1)))
    np.testing.assert_array_equal(ids, mask_digits(ids, digits, mask_id, np.random.default_rng(1), share=0.0))
    everything = mask_digits(ids, digits, mask_id, np.random.default_rng(1), share=1.0)
    assert not set("0123456789") & set(tokenizer.decode(everything.tolist()))
