"""Multiple choice: MMBench with CircularEval (Liu et al. 2023) and SEED-Bench (Li et al. 2023)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from string import ascii_uppercase

from vla.errors import InputError
from vla.evaluation.vlm.scoring.answered import may_mean
from vla.evaluation.vlm.scoring.benchmark import Benchmark, Unit, categories, each, mean
from vla.evaluation.vlm.scoring.files import Answers, Entry

LETTER = "Answer with the option's letter from the given choices directly."
ROTATION = 10**6
"""The rotations of question i have the indices i + k times this."""
REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
NOT_THERE = frozenset(
    ["", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA"]
    + ["NULL", "NaN", "None", "n/a", "nan", "null"]
)
"""Cells that pandas.read_csv, by which the official code reads, takes for empty: an option "None" is none."""
MARKS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))


def chosen(said: str, options: Mapping[str, str]) -> str | None:
    """The letter of the option that was meant, by the rules of MMBench's code (VLMEvalKit); None where none is clear.

    The one letter that stands as a word, among the last four; else that of "answer is"; else the one option whose text
    is in an answer that is not twice as long as all options. Where these rules fail, the code may ask a language model;
    this one does not. By the text of an option nothing is chosen that declines to answer (`answered`).
    """
    if "Failed to obtain answer via API" not in said:
        if any(refusal in said for refusal in REFUSALS):
            return None
        words = said.translate(MARKS).split()
        letters = [letter for letter in options if letter in words]
        if len(letters) == 1 and words.index(letters[0]) > len(words) - 5:
            return letters[0]
        if not letters and "Z" in words:
            return None
        stated = re.search(r"answer\s+is\s+\**([ABCD])", said, re.IGNORECASE)
        if stated and stated[1].upper() in options:
            return stated[1].upper()
    if len(said) > 2 * sum(map(len, options.values())):
        return None
    found = [letter for letter, text in options.items() if text and text.lower() in said.lower()]
    return found[0] if len(found) == 1 and may_mean(said, options[found[0]]) else None


def _options(entry: Entry) -> dict[str, str]:
    return {letter: str(entry[letter]) for letter in ascii_uppercase if _holds(entry, letter)}


def _holds(entry: Entry, column: str) -> bool:
    value = entry.get(column)
    # Parquet files of it, made by pandas, have NaN for what was empty.
    return value is not None and value == value and value not in NOT_THERE


def _circular(questions: Mapping[str, Entry], said: Answers) -> list[Unit]:
    """A question with all its rotations is a unit, right if each of them is."""
    groups: dict[int, dict[int, str]] = {}
    for i in questions:
        if not i.isdecimal():
            raise InputError(f"MMBench: the index {i!r} is no whole number")
        groups.setdefault(int(i) % ROTATION, {})[int(i)] = i
    units = []
    for rotations in groups.values():
        right = all(chosen(said[i], _options(questions[i])) == questions[i]["answer"] for i in rotations.values())
        first = questions[rotations[min(rotations)]]
        units.append(Unit((float(right), 1.0), categories(first, ("l2-category", "category"))))
    return units


def _mmbench_prompt(entry: Entry) -> str:
    hint = [f"Hint: {entry['hint']}"] if _holds(entry, "hint") else []
    options = (f"{letter}. {text}" for letter, text in _options(entry).items())
    last = "Please select the correct answer from the options above."
    return "\n".join((*hint, f"Question: {entry['question']}", "Options:", *options, last))


def _seed_options(entry: Entry) -> dict[str, str]:
    return {letter: str(entry[f"choice_{letter.lower()}"]) for letter in "ABCD"}


def _seed(entry: Entry, said: str) -> float:
    """A letter as it is; from prose, by MMBench's rules."""
    options = _seed_options(entry)
    return float((said if said in options else chosen(said, options)) == entry["answer"])


def _seed_prompt(entry: Entry) -> str:
    options = (f"{letter}. {text}" for letter, text in _seed_options(entry).items())
    return "\n".join((str(entry["question"]), *options, LETTER))


MMBENCH = Benchmark(_circular, mean("circular_accuracy"), _mmbench_prompt, truth=("answer",))
SEED_BENCH = Benchmark(each(_seed, "question_type_id", "data_type"), mean("accuracy"), _seed_prompt, truth=("answer",))
