"""MathVista (Lu et al. 2024): an answer is extracted, brought into the form of its type, and must equal the truth."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from vla.evaluation.vlm.scoring.answered import is_empty, may_mean
from vla.evaluation.vlm.scoring.benchmark import Benchmark, Unit, categories, mean
from vla.evaluation.vlm.scoring.files import Answers, Entry, answer, answers
from vla.evaluation.vlm.scoring.text import edits

FIELDS = ("question_type", "answer_type")
METADATA = ("language", "source", "category", "task", "context", "grade", "skills")
NUMBER = "requiring a floating-point number with {} decimal place{} and provide the final value, e.g., {}"
HINTS = {
    "integer": "requiring an integer answer and provide the final value, e.g., 1, 2, 3",
    "float1": NUMBER.format("one", "", "1.2, 1.3, 1.4"),
    "float2": NUMBER.format("two", "s", "1.23, 1.34, 1.45"),
    "list": "requiring a Python list as an answer and provide the final list, e.g., [1, 2, 3], [1.2, 1.3, 1.4]",
    "text": "and provide the correct option letter, e.g., A, B, C, D",
}


def extracted(said: str, entry: Entry) -> str:
    """By the rules of the official code: a choice or a number as it stands, else what `The answer is "…".` quotes.

    Where these find nothing the official code asks a language model; this one goes on with all that was said.
    """
    kind = entry["answer_type"]
    if entry["question_type"] == "multi_choice" and said in entry["choices"]:
        return said
    try:
        if kind in ("integer", "float"):
            return str(int(said) if kind == "integer" else float(said))
    except ValueError:
        pass
    quoted = re.search(r'The answer is "(.*)"\.', said)
    return quoted[1] if quoted else said


def normalized(answer: str, entry: Entry) -> str | None:
    """A choice's text (by its letter, else the nearest by edits), a number as its type is written, or None.

    Of an answer that is empty or declines, no choice is the nearest: the official code has the option
    --ignore_empty_extractions for it (2024-03-03), which is off by default, and then takes the shortest choice.
    """
    if entry["question_type"] == "multi_choice":
        return _choice(answer.strip(), [str(choice) for choice in entry["choices"]])
    try:
        if entry["answer_type"] == "integer":
            return str(int(float(answer)))
        if entry["answer_type"] == "float":
            precision = entry.get("precision")
            return str(round(float(answer), None if precision is None else int(precision)))
    except (ValueError, OverflowError):
        return None
    return answer


def _choice(answer: str, choices: Sequence[str]) -> str | None:
    bracketed = re.search(r"\(([a-zA-Z])\)", answer)
    answer = bracketed[1].upper() if bracketed else answer
    letters = [chr(ord("A") + i) for i in range(len(choices))]
    if answer in letters:
        return choices[letters.index(answer)]
    nearest = min(choices, key=lambda text: edits(answer, text))
    return nearest if may_mean(answer, nearest) else None


def _answers(path: Path, questions: Mapping[str, Entry]) -> dict[str, str]:
    """An `extraction` is taken whole, as the official scorer does: quoted, so that `extracted` reads no part of it."""

    def whole(path: Path, place: int, row: Entry) -> str:
        found = answer(path, place, row)
        return f'The answer is "{found}".' if "extraction" in row and not is_empty(found) else found

    return answers(path, questions, whole)


def _units(questions: Mapping[str, Entry], said: Answers) -> list[Unit]:
    units = []
    for i, entry in questions.items():
        right = not is_empty(said[i]) and normalized(extracted(said[i], entry), entry) == str(entry["answer"])
        groups = categories(entry, FIELDS) + categories(entry.get("metadata") or {}, METADATA)
        units.append(Unit((float(right), 1.0), groups))
    return units


def _prompt(entry: Entry) -> str:
    """Hint, question with its unit, and lettered choices."""
    precision = str(int(entry.get("precision") or 0)) if entry["answer_type"] == "float" else ""
    unit = f" (Unit: {entry['unit']})" if entry.get("unit") else ""
    choices = [f"({chr(ord('A') + i)}) {choice}" for i, choice in enumerate(entry.get("choices") or ())]
    kind = HINTS.get(f"{entry['answer_type']}{precision}", HINTS["float2"])
    hint = f"Hint: Please answer the question {kind}, at the end."
    return "\n".join(
        (hint, f"Question: {entry['question']}{unit}", *(["Choices:", *choices] if choices else []))
    ).strip()


MATHVISTA = Benchmark(_units, mean("accuracy"), _prompt, answers=_answers, truth=("answer",))
