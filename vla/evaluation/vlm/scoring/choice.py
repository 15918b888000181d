"""Multiple choice: MMBench with CircularEval (Liu et al. 2023) and SEED-Bench (Li et al. 2023)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from string import ascii_uppercase

from vla.errors import InputError
from vla.evaluation.vlm.scoring.answered import may_mean
from vla.evaluation.vlm.scoring.benchmark import Benchmark, Unit, categories, mean, per_question
from vla.evaluation.vlm.scoring.files import Answers, Entry

LETTER = "Answer with the option's letter from the given choices directly."
ROTATION = 10**6
"""The rotation k of question i has the index i + k times this."""
REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
EMPTY_CELLS = frozenset(
    ["", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA"]
    + ["NULL", "NaN", "None", "n/a", "nan", "null"]
)
"""Cells that pandas.read_csv, used by the official code, treats as empty; an option "None" is ignored."""
MARKS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))


def parse_option(prediction: str, options: Mapping[str, str]) -> str | None:
    """The letter of the selected option by the rules of MMBench's code (VLMEvalKit), or None.

    In order: the only letter that is a separate word, among the last four; the letter after "answer is"; the only
    option whose text is in an answer of at most twice the length of all options. The official code may query a language
    model if these rules fail; this function does not. Refusals do not match the text of an option (`answered`).
    """
    if "Failed to obtain answer via API" not in prediction:
        if any(refusal in prediction for refusal in REFUSALS):
            return None
        words = prediction.translate(MARKS).split()
        letters = [letter for letter in options if letter in words]
        if len(letters) == 1 and words.index(letters[0]) > len(words) - 5:
            return letters[0]
        if not letters and "Z" in words:
            return None
        stated = re.search(r"answer\s+is\s+\**([ABCD])", prediction, re.IGNORECASE)
        if stated and stated[1].upper() in options:
            return stated[1].upper()
    if len(prediction) > 2 * sum(map(len, options.values())):
        return None
    found = [letter for letter, text in options.items() if text and text.lower() in prediction.lower()]
    return found[0] if len(found) == 1 and may_mean(prediction, options[found[0]]) else None


def _options(entry: Entry) -> dict[str, str]:
    return {letter: str(entry[letter]) for letter in ascii_uppercase if _has_value(entry, letter)}


def _has_value(entry: Entry, column: str) -> bool:
    value = entry.get(column)
    # Parquet files written by pandas have NaN for empty cells.
    return value is not None and value == value and value not in EMPTY_CELLS


def _circular(questions: Mapping[str, Entry], predictions: Answers) -> list[Unit]:
    """One unit per question with its rotations; correct if all rotations are."""
    groups: dict[int, dict[int, str]] = {}
    for i in questions:
        if not i.isdecimal():
            raise InputError(f"MMBench: the index {i!r} is not an integer")
        groups.setdefault(int(i) % ROTATION, {})[int(i)] = i
    units = []
    for rotations in groups.values():
        right = all(
            parse_option(predictions[i], _options(questions[i])) == questions[i]["answer"] for i in rotations.values()
        )
        first = questions[rotations[min(rotations)]]
        units.append(Unit((float(right), 1.0), categories(first, ("l2-category", "category"))))
    return units


def _mmbench_prompt(entry: Entry) -> str:
    hint = [f"Hint: {entry['hint']}"] if _has_value(entry, "hint") else []
    options = (f"{letter}. {text}" for letter, text in _options(entry).items())
    last = "Please select the correct answer from the options above."
    return "\n".join((*hint, f"Question: {entry['question']}", "Options:", *options, last))


def _seed_options(entry: Entry) -> dict[str, str]:
    return {letter: str(entry[f"choice_{letter.lower()}"]) for letter in "ABCD"}


def _seed(entry: Entry, prediction: str) -> float:
    """A letter, or an option parsed by MMBench's rules."""
    options = _seed_options(entry)
    return float((prediction if prediction in options else parse_option(prediction, options)) == entry["answer"])


def _seed_prompt(entry: Entry) -> str:
    options = (f"{letter}. {text}" for letter, text in _seed_options(entry).items())
    return "\n".join((str(entry["question"]), *options, LETTER))


MMBENCH = Benchmark(_circular, mean("circular_accuracy"), _mmbench_prompt, truth=("answer",))
SEED_BENCH = Benchmark(
    per_question(_seed, "question_type_id", "data_type"), mean("accuracy"), _seed_prompt, truth=("answer",)
)
