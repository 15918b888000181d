"""Detects empty answers and refusals, which always count as wrong.

Some official rules guess if they cannot parse an answer: POPE counts it as yes, MMMU samples a letter, MathVista takes
the choice with the smallest edit distance, MMBench an option whose text is in the answer. A model that failed, ran out
of tokens or refused could be correct by chance. All other answers, however unclear, are scored by the official rule.
"""

from __future__ import annotations

import re

DECLINES = re.compile(
    r"(i'?m|i am) (really |very |so )?sorry|sorry|my apologies|i apologi[sz]e|unfortunately, i|as an ai\b"
    r"|(i )?(can ?not|can't|could not|couldn't|am unable to|am not able to|won't|don't know|do not know)\b"
    r"|(i'm )?(unable|not able) to\b"
)
"""The beginnings of refusals, in lower case with straight apostrophes."""


NO_WIDTH = str.maketrans(dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff"))


def is_empty(answer: str) -> bool:
    """Whether the answer is only whitespace, including zero-width characters."""
    return not answer.translate(NO_WIDTH).strip()


def declines(answer: str) -> bool:
    """Whether the answer begins as a refusal."""
    return bool(DECLINES.match(_words(answer)))


def answered(answer: str) -> bool:
    """Whether the answer has a letter or a digit and is not a refusal."""
    return bool(_words(answer)) and not declines(answer)


def may_mean(answer: str, option: str) -> bool:
    """Whether an answer without a letter may mean an option, which may itself be "Cannot be determined"."""
    return answered(answer) or answer.strip() == option.strip() or (declines(answer) and declines(option))


def _words(answer: str) -> str:
    return re.sub(r"^[\W_]+|[\W_]+$", "", answer.lower().replace("\u2019", "'"))
