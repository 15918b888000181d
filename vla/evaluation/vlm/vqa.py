"""Scores VQA answers by kind: normalised exact match, distance for points, F1 of words for descriptions."""

from __future__ import annotations

import math
import re
import string
from collections import Counter
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8

from vla.datasets.questions import POINT_SCALE

POINT_TOLERANCE = 0.05
"""The maximum distance of a correct point from the true one, as a fraction of the (square) image's width."""

DESCRIPTIONS = ("caption", "detail", "reasoning", "conversation")
"""Kinds whose answers are free text."""

_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {word: str(number) for number, word in enumerate(_WORDS)}
_ARTICLES = frozenset({"a", "an", "the"})
_STRIP = str.maketrans({mark: " " for mark in string.punctuation})


@dataclass(frozen=True)
class Case:
    """A question with the model's prediction and the correct answer."""

    image: UInt8[np.ndarray, "h w 3"]
    question: str
    prediction: str
    answer: str


def score(kind: str, prediction: str, answer: str) -> float:
    """Scores an answer from 0 to 1; a malformed answer scores 0.

    - A point "x y", in percent of the image's width and height, is correct within a Euclidean distance of
      `POINT_TOLERANCE`.
    - A description is scored by the F1 of its normalised words (SQuAD, Rajpurkar et al. 2016, section 5).
    - Other answers must equal the true one after normalisation: lower case, no punctuation, no articles, number words
      as digits (VQAv2's official script, without its contractions).
    """
    if kind == "point":
        point, true = parse_point(prediction), parse_point(answer)
        # The slack accepts a point at exactly the tolerance despite rounding.
        return float(bool(point and true and math.dist(point, true) <= POINT_TOLERANCE + 1e-9))
    if kind in DESCRIPTIONS:
        words, expected = (Counter(normalize_answer(text).split()) for text in (prediction, answer))
        return 2 * (words & expected).total() / max(1, words.total() + expected.total())
    return float(bool(prediction.strip()) and normalize_answer(prediction) == normalize_answer(answer))


def parse_point(text: str) -> tuple[float, float] | None:
    """Parses an answer "x y" (or "x, y", "(x, y)") into fractions of the image; None if it has other text."""
    match = re.fullmatch(r"[\s(\[]*([0-9]{1,3})(?:\s*,\s*|\s+)([0-9]{1,3})[\s)\].]*", text)
    return (int(match[1]) / POINT_SCALE, int(match[2]) / POINT_SCALE) if match else None


def normalize_answer(text: str) -> str:
    """The text in lower case, without punctuation and articles, and with number words as digits."""
    words = text.lower().translate(_STRIP).split()
    # "A" alone is the letter of an option, not an article.
    words = [word for word in words if word not in _ARTICLES] or words
    return " ".join(_NUMBERS.get(word, word) for word in words) or text.strip()
