"""How a backbone was taught to read a conversation: what stands around images, prompts and answers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer, normalizers, pre_tokenizers

from vla.errors import InputError


@dataclass(frozen=True)
class ChatFormat:
    """A row is `begin` images `question` prompt `answer` reply `end`, and further turns `again` prompt `answer` reply
    `end`; before the text of each reply comes `reply`. Between two images is `between`; a row without images has `bare`
    for `begin` and `question` (None: the two).

    All are text, in which the tokenizer's special tokens may be written out. With `bos` the row begins with what the
    tokenizer begins a text with (`<s>`). In a `prefix_lm` (PaliGemma) all up to the reply attends in both directions,
    so a row has one turn. `apart` encodes the text behind an image, and each answer, as texts of their own, as in
    MiniGPT-4's training: SentencePiece writes a space before each.
    """

    begin: str = "<bos>"
    question: str = " "
    answer: str = "<answer>"
    end: str = "<eos>"
    again: str = " "
    reply: str = " "
    prefix_lm: bool = False
    between: str = ""
    bare: str | None = None
    bos: bool = False
    apart: bool = False


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


def bos_of(tokenizer: Tokenizer) -> tuple[int, ...]:
    """What a tokenizer writes before every text."""
    whole, text = (tokenizer.encode("a", add_special_tokens=told).ids for told in (True, False))
    starts = (i for i in range(len(whole)) if whole[i : i + len(text)] == text)
    return tuple(whole[: next(starts, 0)])


def continuing(tokenizer: Tokenizer, *, section: bool) -> Tokenizer:
    """The tokenizer for a text that goes on after others, for which SentencePiece's space before a text is not written:
    behind a special token (a `section`), where the tokenizer says so, or behind text of the same section, always.

    The same tokenizer where it writes none.
    """
    scheme = next((p.prepend_scheme for p in _parts(tokenizer.pre_tokenizer) if _is_metaspace(p)), "never")
    prepends = not section and any(isinstance(n, normalizers.Prepend) for n in _parts(tokenizer.normalizer))
    if not prepends and scheme not in (("first",) if section else ("first", "always")):
        return tokenizer
    copy = Tokenizer.from_str(tokenizer.to_str())
    for part in _parts(copy.pre_tokenizer):
        if _is_metaspace(part):
            part.prepend_scheme = "never"
    if prepends:
        kept = [n for n in _parts(copy.normalizer) if not isinstance(n, normalizers.Prepend)]
        copy.normalizer = normalizers.Sequence(kept)
    return copy


def _is_metaspace(part: Any) -> bool:
    return isinstance(part, pre_tokenizers.Metaspace)


def _parts(whole: Any) -> Iterator[Any]:
    several = type(whole) in (normalizers.Sequence, pre_tokenizers.Sequence)
    if whole is not None:
        yield from whole if several else (whole,)


def _special(tokenizer: Tokenizer) -> re.Pattern[str]:
    tokens = (token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special)
    return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or r"(?!)")
