"""MathVista (Lu et al. 2024): exact match of the extracted and normalised answer."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from vla.evaluation.vlm.scoring.answered import is_empty, may_mean
from vla.evaluation.vlm.scoring.benchmark import Benchmark, Unit, categories, mean
from vla.evaluation.vlm.scoring.files import Answers, Entry, answer, answers, as_list
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


def extracted(prediction: str, entry: Entry) -> str:
    """Extracts the answer by the official rules: a choice or a number, else the quoted text of `The answer is "…".`.

    If these rules fail, the official code queries a language model; this function returns the full text.
    """
    kind = entry["answer_type"]
    if entry["question_type"] == "multi_choice" and prediction in as_list(entry["choices"]):
        return prediction
    try:
        if kind in ("integer", "float"):
            return str(int(prediction) if kind == "integer" else float(prediction))
    except ValueError:
        pass
    quoted = re.search(r'The answer is "(.*)"\.', prediction)
    return quoted[1] if quoted else prediction


def normalized(answer: str, entry: Entry) -> str | None:
    """Normalises an answer: the text of a choice (by letter, else by smallest edit distance) or a number; or None.

    Empty answers and refusals match no choice. The official code does so with --ignore_empty_extractions (2024-03-03),
    which is off by default, and otherwise takes the shortest choice.
    """
    if entry["question_type"] == "multi_choice":
        return _choice(answer.strip(), as_list(entry["choices"]))
    try:
        if entry["answer_type"] == "integer":
            return str(int(float(answer)))
        if entry["answer_type"] == "float":
            return str(round(float(answer), _precision(entry)))
    except (ValueError, OverflowError):
        return None
    return answer


def _precision(entry: Entry) -> int | None:
    """The number of decimals; a table has it as text, "1.0", or an empty text."""
    precision = entry.get("precision")
    return None if precision in (None, "") else int(float(precision))


def _choice(answer: str, choices: Sequence[str]) -> str | None:
    bracketed = re.search(r"\(([a-zA-Z])\)", answer)
    answer = bracketed[1].upper() if bracketed else answer
    letters = [chr(ord("A") + i) for i in range(len(choices))]
    if answer in letters:
        return choices[letters.index(answer)]
    nearest = min(choices, key=lambda text: edits(answer, text))
    return nearest if may_mean(answer, nearest) else None


def _answers(path: Path, questions: Mapping[str, Entry]) -> dict[str, str]:
    """Reads answers; an `extraction` is quoted, so that `extracted` returns all of it, as in the official scorer."""

    def read_answer(path: Path, index: int, row: Entry) -> str:
        found = answer(path, index, row)
        return f'The answer is "{found}".' if "extraction" in row and not is_empty(found) else found

    return answers(path, questions, read_answer)


def _units(questions: Mapping[str, Entry], predictions: Answers) -> list[Unit]:
    units = []
    for i, entry in questions.items():
        right = not is_empty(predictions[i]) and normalized(extracted(predictions[i], entry), entry) == str(
            entry["answer"]
        )
        groups = categories(entry, FIELDS) + categories(entry.get("metadata") or {}, METADATA)
        units.append(Unit((float(right), 1.0), groups))
    return units


def _prompt(entry: Entry) -> str:
    """The hint, the question with its unit, and the choices with letters."""
    precision = str(_precision(entry) or 0) if entry["answer_type"] == "float" else ""
    unit = f" (Unit: {entry['unit']})" if entry.get("unit") else ""
    choices = [f"({chr(ord('A') + i)}) {choice}" for i, choice in enumerate(as_list(entry.get("choices") or None))]
    kind = HINTS.get(f"{entry['answer_type']}{precision}", HINTS["float2"])
    hint = f"Hint: Please answer the question {kind}, at the end."
    return "\n".join(
        (hint, f"Question: {entry['question']}{unit}", *(["Choices:", *choices] if choices else []))
    ).strip()


MATHVISTA = Benchmark(_units, mean("accuracy"), _prompt, answers=_answers, truth=("answer",))
