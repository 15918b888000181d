"""Actions as integers in text (VLA-0, Goyal et al. 2025, arXiv 2510.13054): no new vocabulary and no new modules."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from tokenizers import Tokenizer

from vla.errors import InputError

DIGITS = frozenset("0123456789")
ALLOWED = DIGITS | {" "}
"""The characters of an action's text."""
MASKED_SHARE = 0.4
"""Share of the target's digit tokens that are masked in training."""


@dataclass(frozen=True)
class IntegerText:
    """Writes a value v in [-limit, limit] as round(steps (v + limit) / (2 limit)), one of 0 … steps.

    An example is "500 500 1000 0 …". Integers are ordered by step, then component, and separated by one space. The
    error in the range is at most limit / steps; other values are clipped.
    """

    steps: int = 1000
    limit: float = 1.0

    @property
    def error_bound(self) -> float:
        """Largest error of a decoded value, without clipping."""
        return self.limit / self.steps

    def encode(self, actions: Float[np.ndarray, "h a"]) -> str:
        """The text of a normalised chunk."""
        unit = (np.clip(np.asarray(actions, np.float64), -self.limit, self.limit) + self.limit) / (2 * self.limit)
        return " ".join(map(str, np.rint(unit * self.steps).astype(np.int64).ravel().tolist()))

    def decode(self, text: str, horizon: int, dim: int) -> Float[np.ndarray, "h a"] | None:
        """The actions, or None unless the text is exactly `horizon` x `dim` integers from 0 to `steps`."""
        words = text.split(" ")
        words = [word for word in words if word]
        longest = len(str(self.steps))
        if len(words) != horizon * dim or not all(re.fullmatch(f"[0-9]{{1,{longest}}}", word) for word in words):
            return None
        values = np.array([int(word) for word in words])
        if len(values) == 0 or values.max() > self.steps:
            return None
        return (values / self.steps * 2 * self.limit - self.limit).reshape(horizon, dim)


def allowed_tokens(tokenizer: Tokenizer) -> Int[np.ndarray, "n"]:
    """Ids of the tokens that contain only digits and spaces, to which decoding is constrained.

    Raises:
        InputError: when a digit or the space is in none of them.
    """
    texts = _texts(tokenizer)
    allowed = [i for i, text in enumerate(texts) if text and ALLOWED.issuperset(text)]
    if missing := sorted(ALLOWED.difference(*(texts[i] for i in allowed))):
        raise InputError(f"the tokenizer has no token of digits and spaces for {missing}: it cannot write integers")
    return np.array(allowed)


def digit_tokens(tokenizer: Tokenizer) -> Bool[np.ndarray, "v"]:
    """Mask of the tokens that contain a digit, which `mask_digits` may replace."""
    return np.array(
        [bool(text) and ALLOWED.issuperset(text) and bool(DIGITS & set(text)) for text in _texts(tokenizer)]
    )


def mask_digits(
    ids: Int[np.ndarray, "n"],
    digits: Bool[np.ndarray, "v"],
    mask_id: int,
    rng: np.random.Generator,
    share: float = MASKED_SHARE,
) -> Int[np.ndarray, "n"]:
    """The model's input in training: each digit token is replaced by `mask_id` with probability `share`.

    Masking keeps the model from only continuing the previous numbers; it must use the images (VLA-0, sec. III-B). The
    labels are not masked.
    """
    hidden = digits[ids] & (rng.random(len(ids)) < share)
    return np.where(hidden, mask_id, ids)


def _texts(tokenizer: Tokenizer) -> list[str]:
    """Text of each token after another token: decoded alone, some tokenizers drop a leading space."""
    start = tokenizer.encode("0", add_special_tokens=False).ids
    before = len(tokenizer.decode(start, skip_special_tokens=False))
    size = tokenizer.get_vocab_size()
    texts = tokenizer.decode_batch([[*start, i] for i in range(size)], skip_special_tokens=False)
    return [text[before:] for text in texts]
