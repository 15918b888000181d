"""From what stands in a conversation to its tokens: prompts, replies, and what is around images."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from tokenizers import Tokenizer

from vla.common.scene_objects import POINT_SCALE
from vla.errors import InputError
from vla.models.chat import ChatFormat, Part, bos_of, continuing, encode_whole

POINT_TOKENS = tuple(f"<{i}%>" for i in range(POINT_SCALE))
"""Coordinates of points, where the tokenizer has them; else points are plain text."""
POINT = re.compile(r"(\b\d{1,2} \d{1,2}\b)")


class ChatEncoder:
    """Tokens of one tokenizer in one format of conversations.

    Each text between two special tokens, or between images and one, is encoded whole, as when the row is encoded at
    once; what a user writes never holds a special token. Raises InputError when the tokenizer lacks what the format
    needs.
    """

    def __init__(self, tokenizer: Tokenizer, chat: ChatFormat, image: int) -> None:
        self.tokenizer, self.chat, self.image = tokenizer, chat, image
        self._section, self._tail = (
            tokenizer if chat.apart else continuing(tokenizer, section=section) for section in (True, False)
        )
        self._bos = bos_of(tokenizer) if chat.bos else ()
        self.question, self.again = (Part.before(self._section, text) for text in (chat.question, chat.again))
        bare = chat.begin + chat.question if chat.bare is None else chat.bare
        self.bare = Part.before(tokenizer, bare)
        self._answer = Part.after(self._section, chat.answer)
        self.ends = self._ends()
        self.points = [tokenizer.token_to_id(token) for token in POINT_TOKENS]
        self.has_points = None not in self.points
        self._begin_encoding()

    def _ends(self) -> tuple[tuple[int, ...], ...]:
        """Tokens behind which an answer is over, the first as it is trained."""
        end = self.chat.end
        if (token := self.tokenizer.token_to_id(end)) is not None:
            return ((token,),)
        behind_text = continuing(self.tokenizer, section=False)
        found = tuple(dict.fromkeys(encode_whole(t, end) for t in (behind_text, self._section, self.tokenizer)))
        unknown = self.tokenizer.token_to_id(getattr(self.tokenizer.model, "unk_token", None) or "")
        if not end or not found[0] or unknown in found[0]:
            raise InputError(f"the tokenizer has no token {end!r}, which the format of its conversations needs")
        return found

    def _begin_encoding(self) -> None:
        # "<image>" in a user's text is text: it must not open a place for an image.
        for tokenizer in (self.tokenizer, self._section, self._tail):
            tokenizer.encode_special_tokens = True
        self._encode = lru_cache(maxsize=65536)(self._encode_text)
        self.opening = lru_cache(maxsize=4096)(self._opening)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_encode", "opening")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """In a process that builds batches beside others."""
        self.__dict__.update(state)
        self._begin_encoding()

    def _opening(self, images: tuple[tuple[str | int, ...], ...]) -> tuple[int, ...]:
        """What comes before the first prompt; an image is texts and numbers of image tokens (`Markup.parts`)."""
        if not images:
            return (*self._bos, *self.bare.ids)
        ids, text, tokenizer = list(self._bos), self.chat.begin, self.tokenizer
        for number, parts in enumerate(images):
            text += self.chat.between if number else ""
            for part in parts:
                if isinstance(part, str):
                    text += part
                elif part:
                    ids += [*encode_whole(tokenizer, text), *[self.image] * part]
                    text, tokenizer = "", self._section
        return (*ids, *encode_whole(tokenizer, text))

    def turn(self, prompt: str, *, later: bool = False, bare: bool = False, more: str = "") -> list[int]:
        """A prompt, with `more` at its end, and what asks for its reply: the first of its row or a `later` one, of a
        row with images or a `bare` one."""
        before = self.again if later else self.bare if bare else self.question
        ids = () if bare and not later else before.ids
        # Nothing but the tokenizer's own beginning is before it: it is a text's start.
        first = bare and not later and not before.ids
        words = self._encode(before.text + prompt.strip(), more + self._answer.text, "whole" if first else "section")
        return [*ids, *words, *self._answer.ids]

    def reply(self, text: str) -> list[int]:
        """An answer up to the token that ends it."""
        words = self.chat.reply + text.strip()
        if len(self.ends) == 1 and self.tokenizer.token_to_id(self.chat.end) is not None:
            return [*self._encode(words, "", "tail"), *self.ends[0]]
        return list(self._encode(words, self.chat.end, "tail"))

    def until_end(self, ids: Sequence[int]) -> list[int]:
        """The tokens of an answer before what ends it."""
        for i in range(len(ids)):
            if self.ended(ids[: i + 1]):
                return list(ids[: i + 1 - next(len(end) for end in self.ends if self._is_last(ids[: i + 1], end))])
        return list(ids)

    def ended(self, ids: Sequence[int]) -> bool:
        """Whether an answer is over behind these tokens."""
        return any(self._is_last(ids, end) for end in self.ends)

    @staticmethod
    def _is_last(ids: Sequence[int], end: Sequence[int]) -> bool:
        return tuple(ids[-len(end) :]) == tuple(end)

    def _encode_text(self, text: str, behind: str, where: str) -> tuple[int, ...]:
        """Tokens of the text and of what is `behind` it; each pair of numbers below 100 in the text is a point."""
        tokenizer = {"whole": self.tokenizer, "section": self._section, "tail": self._tail}[where]
        if not self.has_points:
            return tuple(tokenizer.encode(text + behind, add_special_tokens=False).ids)
        ids: list[int] = []
        for part in POINT.split(text):
            if match := POINT.fullmatch(part):
                ids += (self.points[int(value)] for value in match[0].split())
            elif part.strip():
                ids += tokenizer.encode(" " + part.strip(), add_special_tokens=False).ids
        return (*ids, *tokenizer.encode(behind, add_special_tokens=False).ids)
