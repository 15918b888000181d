"""Answers that answer nothing, to which no rule may lend a guess.

Some official rules fall back on a guess where they can read nothing: POPE takes it for a yes, MMMU draws a letter,
MathVista takes the choice that is nearest by edits, MMBench one whose text is in the answer. A model that failed, ran
out of tokens or declined would be right by luck. Here such an answer is wrong; one that says something, however
unclear, is scored by the official rule.
"""

from __future__ import annotations

import re

DECLINES = re.compile(
    r"(i'?m|i am) (really |very |so )?sorry|sorry|my apologies|i apologi[sz]e|unfortunately, i|as an ai\b"
    r"|(i )?(can ?not|can't|could not|couldn't|am unable to|am not able to|won't|don't know|do not know)\b"
    r"|(i'm )?(unable|not able) to\b"
)
"""How an answer begins that declines, in lower case with straight apostrophes."""


NO_WIDTH = str.maketrans(dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff"))


def is_empty(said: str) -> bool:
    """Whether there is nothing but blanks, also such as have no width."""
    return not said.translate(NO_WIDTH).strip()


def declines(said: str) -> bool:
    return bool(DECLINES.match(_words(said)))


def answered(said: str) -> bool:
    """Whether an answer says something: it has a letter or a digit, and does not begin by declining."""
    return bool(_words(said)) and not declines(said)


def may_mean(said: str, option: str) -> bool:
    """Whether an answer without a letter may be taken for an option, which may be "Cannot be determined"."""
    return answered(said) or said.strip() == option.strip() or (declines(said) and declines(option))


def _words(said: str) -> str:
    return re.sub(r"^[\W_]+|[\W_]+$", "", said.lower().replace("\u2019", "'"))
