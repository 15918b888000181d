"""How a backbone was taught to read a conversation: what stands around images, prompts and answers."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tokenizers import Tokenizer

from vla.errors import InputError


@dataclass(frozen=True)
class ChatFormat:
    """A row is `begin` images `question` prompt `answer` reply `end`, and further turns `again` prompt `answer` reply
    `end`; before the text of each reply comes `reply`.

    All are text, in which the tokenizer's special tokens may be written out; `end` is one token. In a `prefix_lm`
    (PaliGemma) all up to the reply attends in both directions, so a row has one turn.
    """

    begin: str = "<bos>"
    question: str = " "
    answer: str = "<answer>"
    end: str = "<eos>"
    again: str = " "
    reply: str = " "
    prefix_lm: bool = False


@dataclass(frozen=True)
class Part:
    """One of these texts before or after a prompt: its special tokens, and the text between them and the prompt."""

    ids: tuple[int, ...]
    text: str

    @classmethod
    def before(cls, tokenizer: Tokenizer, text: str) -> Part:
        ends = [match.end() for match in _special(tokenizer).finditer(text)] or [0]
        return cls(encode_whole(tokenizer, text[: ends[-1]]), text[ends[-1] :])

    @classmethod
    def after(cls, tokenizer: Tokenizer, text: str) -> Part:
        match = _special(tokenizer).search(text)
        start = match.start() if match else len(text)
        return cls(encode_whole(tokenizer, text[start:]), text[:start])


def encode_whole(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    """The tokens of a text that may hold special ones."""
    as_text, tokenizer.encode_special_tokens = tokenizer.encode_special_tokens, False
    try:
        return tuple(tokenizer.encode(text, add_special_tokens=False).ids)
    finally:
        tokenizer.encode_special_tokens = as_text


def token_id(tokenizer: Tokenizer, token: str) -> int:
    """Raises InputError when the tokenizer lacks it."""
    if (found := tokenizer.token_to_id(token)) is None:
        raise InputError(f"the tokenizer has no token {token!r}, which the format of its conversations needs")
    return int(found)


def _special(tokenizer: Tokenizer) -> re.Pattern[str]:
    tokens = (token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special)
    return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or r"(?!)")
