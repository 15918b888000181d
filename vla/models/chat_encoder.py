"""Encodes conversations as tokens: prompts, replies, and the texts around images."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from typing import Any

from tokenizers import Tokenizer

from vla.common.scene_objects import POINT_SCALE
from vla.errors import InputError
from vla.models.batch import Row
from vla.models.chat import ChatFormat, PromptAffix, bos_of, encode_with_special, without_leading_space

POINT_TOKENS = tuple(f"<{i}%>" for i in range(POINT_SCALE))
"""Tokens of point coordinates. With a tokenizer that does not have them, points are plain text."""
POINT = re.compile(r"(\b\d{1,2} \d{1,2}\b)")


class ChatEncoder:
    """Encodes conversations with one tokenizer, in one format.

    Each text between two special tokens or images is encoded as a unit, so that the result equals that of encoding the
    complete row. Special tokens in user text are encoded as plain text.

    Raises:
        InputError: when the tokenizer does not have a token that the format needs.
    """

    def __init__(self, tokenizer: Tokenizer, chat: ChatFormat, image: int) -> None:
        self.tokenizer, self.chat, self.image = tokenizer, chat, image
        self._section, self._tail = (
            tokenizer if chat.apart else without_leading_space(tokenizer, section=section) for section in (True, False)
        )
        self._bos = bos_of(tokenizer) if chat.bos else ()
        self.question, self.again = (PromptAffix.before(self._section, text) for text in (chat.question, chat.again))
        bare = chat.begin + chat.question if chat.bare is None else chat.bare
        self.bare = PromptAffix.before(tokenizer, bare)
        self._answer = PromptAffix.after(self._section, chat.answer)
        self.ends = self._ends()
        self.points = [tokenizer.token_to_id(token) for token in POINT_TOKENS]
        self.has_points = None not in self.points
        self._begin_encoding()

    def _ends(self) -> tuple[tuple[int, ...], ...]:
        """Token sequences that end an answer; the first is the one used in training."""
        end = self.chat.end
        if (token := self.tokenizer.token_to_id(end)) is not None:
            return ((token,),)
        after_text = without_leading_space(self.tokenizer, section=False)
        found = tuple(dict.fromkeys(encode_with_special(t, end) for t in (after_text, self._section, self.tokenizer)))
        unknown = self.tokenizer.token_to_id(getattr(self.tokenizer.model, "unk_token", None) or "")
        if not end or not found[0] or unknown in found[0]:
            raise InputError(f"the tokenizer has no token {end!r}, which the format of its conversations needs")
        return found

    def _begin_encoding(self) -> None:
        # "<image>" in user text must be encoded as text, not as an image token.
        for tokenizer in (self.tokenizer, self._section, self._tail):
            tokenizer.encode_special_tokens = True
        self._encode = lru_cache(maxsize=65536)(self._encode_text)
        self.opening = lru_cache(maxsize=4096)(self._opening)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_encode", "opening")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restores an encoder in a data loading process; caches are not transferred."""
        self.__dict__.update(state)
        self._begin_encoding()

    def _opening(self, images: tuple[tuple[str | int, ...], ...]) -> tuple[int, ...]:
        """The tokens before the first prompt; an image is texts and counts of image tokens (`Markup.parts`)."""
        if not images:
            return (*self._bos, *self.bare.ids)
        ids, text, tokenizer = list(self._bos), self.chat.begin, self.tokenizer
        for number, markup in enumerate(images):
            text += self.chat.between if number else ""
            for item in markup:
                if isinstance(item, str):
                    text += item
                elif item:
                    ids += [*encode_with_special(tokenizer, text), *[self.image] * item]
                    text, tokenizer = "", self._section
        return (*ids, *encode_with_special(tokenizer, text))

    def images(self, images: tuple[tuple[str | int, ...], ...]) -> tuple[int, ...]:
        """The tokens of images alone (`Markup.parts`)."""
        parts = [item for markup in images for item in markup]
        ids = ([self.image] * p if isinstance(p, int) else encode_with_special(self._section, p) for p in parts)
        return tuple(token for run in ids for token in run)

    def add_missing(self, row: Row, images: Sequence[tuple[str | int, ...]], pad: int) -> None:
        """Appends images that a row lacks: their texts, and for each of their tokens `pad`, unattended."""
        for part in chain.from_iterable(images):
            if isinstance(part, int):
                row.add_unattended(part, pad)
            else:
                row.add(self.images(((part,),)), shared=True)

    def turn(self, prompt: str, *, later: bool = False, bare: bool = False, more: str = "") -> list[int]:
        """The tokens of a prompt, `more`, and the text that introduces the reply.

        Args:
            later: the prompt is not the first of its row.
            bare: the row has no images.
        """
        before = self.again if later else self.bare if bare else self.question
        ids = () if bare and not later else before.ids
        # Only the BOS token precedes it, so it is encoded as the start of a text.
        first = bare and not later and not before.ids
        words = self._encode(before.text + prompt.strip(), more + self._answer.text, "start" if first else "section")
        return [*ids, *words, *self._answer.ids]

    def reply(self, text: str) -> list[int]:
        """The tokens of an answer, including its end."""
        words = self.chat.reply + text.strip()
        if len(self.ends) == 1 and self.tokenizer.token_to_id(self.chat.end) is not None:
            return [*self._encode(words, "", "tail"), *self.ends[0]]
        return list(self._encode(words, self.chat.end, "tail"))

    def until_end(self, ids: Sequence[int]) -> list[int]:
        """The tokens of an answer without its end."""
        for i in range(len(ids)):
            if self.ended(ids[: i + 1]):
                return list(ids[: i + 1 - next(len(end) for end in self.ends if self._is_last(ids[: i + 1], end))])
        return list(ids)

    def ended(self, ids: Sequence[int]) -> bool:
        """Whether the tokens end with the end of an answer."""
        return any(self._is_last(ids, end) for end in self.ends)

    @staticmethod
    def _is_last(ids: Sequence[int], end: Sequence[int]) -> bool:
        return tuple(ids[-len(end) :]) == tuple(end)

    def _encode_text(self, text: str, suffix: str, position: str) -> tuple[int, ...]:
        """Tokens of `text` and `suffix`; each pair of numbers below 100 in `text` is a point."""
        tokenizer = {"start": self.tokenizer, "section": self._section, "tail": self._tail}[position]
        if not self.has_points:
            return tuple(tokenizer.encode(text + suffix, add_special_tokens=False).ids)
        ids: list[int] = []
        for piece in POINT.split(text):
            if match := POINT.fullmatch(piece):
                ids += (self.points[int(value)] for value in match[0].split())
            elif piece.strip():
                ids += tokenizer.encode(" " + piece.strip(), add_special_tokens=False).ids
        return (*ids, *tokenizer.encode(suffix, add_special_tokens=False).ids)
