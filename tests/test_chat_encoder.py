"""Conversations as tokens: equal to a row that is encoded at once, for tokenizers that write a space before a text."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
from released_checkpoints import byte_level, sentence_piece
from tokenizers import Tokenizer, decoders, models, normalizers

from vla.errors import InputError
from vla.models.chat import ChatFormat, bos_of
from vla.models.chat_encoder import ChatEncoder

CHAT = ChatFormat("SYS USER: ", "\n", " ASSISTANT:", "</s>", "USER: ", " ", between="\n", bare="SYS USER: ", bos=True)


def words(scheme: str) -> Any:
    return sentence_piece(scheme, "<image>", bos="<s>")


def encoder(tokenizer: Any, chat: ChatFormat = CHAT) -> ChatEncoder:
    inner = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    return ChatEncoder(inner, chat, tokenizer.convert_tokens_to_ids("<image>"))


def legacy() -> Any:
    """As LLaMA's first tokenizer.json: the space is written by the normalizer, before every text."""
    made = words("never")
    inner = made.backend_tokenizer
    inner.pre_tokenizer, inner.decoder = None, decoders.Metaspace()
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return made


@pytest.mark.parametrize("make", [lambda: words("first"), lambda: words("always"), lambda: words("never"), legacy])
@pytest.mark.parametrize("images", [0, 1, 2])
def test_a_row_is_what_its_text_is_at_once(make: Any, images: int) -> None:
    tokenizer = make()
    made = encoder(tokenizer)
    ids = [*made.opening((("", 2, ""),) * images), *made.turn("is it red?", bare=not images), *made.reply("yes")]
    ids += made.turn("and blue?", later=True)
    shown = "\n".join(["<image><image>"] * images) + ("\n" if images else "")
    text = f"SYS USER: {shown}is it red? ASSISTANT: yes</s>USER: and blue? ASSISTANT:"
    assert ids == tokenizer(text)["input_ids"]


def test_the_tokenizer_s_beginning_is_its_own() -> None:
    assert bos_of(byte_level("<x>", bos="<s>").backend_tokenizer) == ()
    tokenizer = byte_level("<x>", bos="<s>", adds_bos=True)
    assert bos_of(tokenizer.backend_tokenizer) == (tokenizer.bos_token_id,)


def test_an_answer_may_end_with_text() -> None:
    """MiniGPT-4's "###", however the tokenizer cuts it; what is behind it is not part of the answer."""
    tokenizer = words("first")
    made = encoder(tokenizer, ChatFormat("", "", "A:", "###", "", " ", bos=True))
    reply = made.reply("yes")
    assert tokenizer.decode(reply) == "yes###"
    assert made.ended(reply) and not made.ended(reply[:-1])
    assert made.until_end([*reply, 5, 6]) == reply[:-3]
    spaced = tokenizer("###", add_special_tokens=False)["input_ids"]
    assert spaced != reply[-3:] and made.until_end([9, *spaced]) == [9]
    newline = encoder(tokenizer, ChatFormat("", "", "A:", "\n", "", " "))
    assert newline.until_end(newline.reply("yes")) == newline.reply("yes")[:-1]
    with pytest.raises(InputError, match="no token '€'"):
        encoder(tokenizer, ChatFormat("", "", "A:", "€", "", " "))


def test_it_goes_to_another_process() -> None:
    made = encoder(words("first"))
    again = pickle.loads(pickle.dumps(made))
    assert again.turn("what is <image> it?") == made.turn("what is <image> it?")
    assert made.image not in made.turn("what is <image> it?")


def test_a_tokenizer_without_a_decoder_of_spaces_is_left_as_it_is() -> None:
    inner = Tokenizer(models.WordLevel({"a": 0, "</s>": 1}, unk_token="a"))
    assert ChatEncoder(inner, ChatFormat("", "", "", "</s>", "", ""), 5).turn("a") == [0]
