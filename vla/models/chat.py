"""Conversation formats of backbones: the texts around images, prompts and answers."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from tokenizers import Tokenizer, normalizers, pre_tokenizers

from vla.errors import InputError
from vla.models.policy_format import PolicyFormat


@dataclass(frozen=True)
class ChatFormat:
    """The format of a conversation. Special tokens of the tokenizer may be written in its texts.

    The first turn is `begin` images `question` prompt `answer` `reply` text `end`, and a further turn is `again` prompt
    `answer` `reply` text `end`.

    Attributes:
        prefix_lm: everything before the reply has bidirectional attention (PaliGemma), so a row has one turn.
        between: text between two images.
        bare: replaces `begin` and `question` in a row without images; None for the two.
        bos: the row begins with the tokens with which the tokenizer begins a text (`<s>`).
        apart: the text after an image, and each answer, are encoded as separate texts, as in MiniGPT-4's training:
            SentencePiece then writes a space before each.
        policy: the inputs of a released robot policy, for a robot's rows; None: they are conversations.
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
    policy: PolicyFormat | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        values = asdict(replace(self, policy=None))
        del values["policy"]
        return values if self.policy is None else values | {"policy": self.policy.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ChatFormat:
        """The inverse of `to_dict`."""
        policy = values.get("policy")
        return cls(**{**values, "policy": None if policy is None else PolicyFormat.from_dict(policy)})


@dataclass(frozen=True)
class PromptAffix:
    """A text before or after a prompt: its special tokens, and the plain text between them and the prompt."""

    ids: tuple[int, ...]
    text: str

    @classmethod
    def before(cls, tokenizer: Tokenizer, text: str) -> PromptAffix:
        """Splits a text before a prompt."""
        ends = [match.end() for match in _special(tokenizer).finditer(text)] or [0]
        return cls(encode_with_special(tokenizer, text[: ends[-1]]), text[ends[-1] :])

    @classmethod
    def after(cls, tokenizer: Tokenizer, text: str) -> PromptAffix:
        """Splits a text after a prompt."""
        match = _special(tokenizer).search(text)
        start = match.start() if match else len(text)
        return cls(encode_with_special(tokenizer, text[start:]), text[:start])


def encode_with_special(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    """The tokens of a text in which special tokens may be written."""
    as_text, tokenizer.encode_special_tokens = tokenizer.encode_special_tokens, False
    try:
        return tuple(tokenizer.encode(text, add_special_tokens=False).ids)
    finally:
        tokenizer.encode_special_tokens = as_text


def token_id(tokenizer: Tokenizer, token: str) -> int:
    """The id of a token. Raises InputError when the tokenizer does not have it."""
    if (found := tokenizer.token_to_id(token)) is None:
        raise InputError(f"the tokenizer has no token {token!r}, which the format of its conversations needs")
    return int(found)


def bos_of(tokenizer: Tokenizer) -> tuple[int, ...]:
    """The tokens that a tokenizer writes before every text."""
    ids, text = (tokenizer.encode("a", add_special_tokens=special).ids for special in (True, False))
    starts = (i for i in range(len(ids)) if ids[i : i + len(text)] == text)
    return tuple(ids[: next(starts, 0)])


def without_leading_space(tokenizer: Tokenizer, *, section: bool) -> Tokenizer:
    """The tokenizer for a text that continues another, without the space that SentencePiece prepends to a text.

    Args:
        section: the text follows a special token, so that the tokenizer's prepend scheme decides about the space. A
            text that follows plain text never has it.

    Returns:
        A modified copy, or the same tokenizer if it prepends no space.
    """
    scheme = next((p.prepend_scheme for p in _steps(tokenizer.pre_tokenizer) if _is_metaspace(p)), "never")
    prepends = not section and any(isinstance(n, normalizers.Prepend) for n in _steps(tokenizer.normalizer))
    if not prepends and scheme not in (("first",) if section else ("first", "always")):
        return tokenizer
    copy = Tokenizer.from_str(tokenizer.to_str())
    for step in _steps(copy.pre_tokenizer):
        if _is_metaspace(step):
            step.prepend_scheme = "never"
    if prepends:
        others = [n for n in _steps(copy.normalizer) if not isinstance(n, normalizers.Prepend)]
        copy.normalizer = normalizers.Sequence(others)
    return copy


def _is_metaspace(step: Any) -> bool:
    return isinstance(step, pre_tokenizers.Metaspace)


def _steps(component: Any) -> Iterator[Any]:
    """The steps of a normaliser or pre-tokeniser, which may be a sequence."""
    is_sequence = type(component) in (normalizers.Sequence, pre_tokenizers.Sequence)
    if component is not None:
        yield from component if is_sequence else (component,)


def _special(tokenizer: Tokenizer) -> re.Pattern[str]:
    tokens = (token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special)
    return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or r"(?!)")
