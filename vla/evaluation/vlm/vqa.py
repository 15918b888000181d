"""Scoring VQA answers, by kind: a normalised exact match, for a point its distance, for a description its words."""

from __future__ import annotations

import math
import re
import string
from collections import Counter

from vla.datasets.questions import POINT_SCALE

POINT_TOLERANCE = 0.05
"""How far a point may be from the true one, as a fraction of the (square) image's width."""

DESCRIPTIONS = ("caption", "detail", "reasoning", "conversation")
"""Kinds whose answers are sentences, of which no two are alike."""

_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {word: str(number) for number, word in enumerate(_WORDS)}
_ARTICLES = frozenset({"a", "an", "the"})
_STRIP = str.maketrans({mark: " " for mark in string.punctuation})


def score(kind: str, prediction: str, answer: str) -> float:
    """1 if `prediction` is right, else 0, and between them for a description; a malformed one is wrong, never an error.

    A point "x y", in percent of the image's width and height, is right within `POINT_TOLERANCE` of the answer,
    euclidean. Anything else must equal the answer after lower-casing, dropping punctuation and articles, and writing
    number words as digits (the normalisation of VQAv2's official script, without its contractions). Of a description
    it is the F1 of its words, so normalised (SQuAD, Rajpurkar et al. 2016, section 5).
    """
    if kind == "point":
        predicted, true = parse_point(prediction), parse_point(answer)
        # The slack keeps a point that is off by just the tolerance right, after rounding.
        return float(bool(predicted and true and math.dist(predicted, true) <= POINT_TOLERANCE + 1e-9))
    if kind in DESCRIPTIONS:
        said, told = (Counter(normalize_answer(text).split()) for text in (prediction, answer))
        return 2 * (said & told).total() / max(1, said.total() + told.total())
    return float(bool(prediction.strip()) and normalize_answer(prediction) == normalize_answer(answer))


def parse_point(text: str) -> tuple[float, float] | None:
    """The point of an answer "x y" (or "x, y", "(x, y)") as fractions of the image; None unless it is just that."""
    match = re.fullmatch(r"[\s(\[]*([0-9]{1,3})(?:\s*,\s*|\s+)([0-9]{1,3})[\s)\].]*", text)
    return (int(match[1]) / POINT_SCALE, int(match[2]) / POINT_SCALE) if match else None


def normalize_answer(text: str) -> str:
    words = text.lower().translate(_STRIP).split()
    # "A" alone is an option's letter, not an article.
    words = [word for word in words if word not in _ARTICLES] or words
    return " ".join(_NUMBERS.get(word, word) for word in words) or text.strip()
