"""MMMU (Yue et al. 2024): the official parser of letters and of short answers."""

from __future__ import annotations

import random
import re
from ast import literal_eval
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vla.errors import InputError
from vla.evaluation.vlm.scoring.answered import answered, is_empty, may_mean
from vla.evaluation.vlm.scoring.benchmark import Benchmark, Unit, mean
from vla.evaluation.vlm.scoring.choice import LETTER
from vla.evaluation.vlm.scoring.files import Answers, Entry
from vla.evaluation.vlm.scoring.vqa import SHORT

SEED = 42
DOMAINS = {
    "Art and Design": "Art Art_Theory Design Music",
    "Business": "Accounting Economics Finance Manage Marketing",
    "Science": "Biology Chemistry Geography Math Physics",
    "Health and Medicine": "Basic_Medical_Science Clinical_Medicine Diagnostics_and_Laboratory_Medicine Pharmacy"
    " Public_Health",
    "Humanities and Social Science": "History Literature Sociology Psychology",
    "Tech and Engineering": "Agriculture Architecture_and_Engineering Computer_Science Electronics Energy_and_Power"
    " Materials Mechanical_Engineering",
}
DOMAIN = {subject: domain for domain, subjects in DOMAINS.items() for subject in subjects.split()}
BEFORE_ANSWER = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
NUMBERS = (
    r"-?\b\d{1,3}(?:,\d{3})+\b",
    r"-?\d+(?:\.\d+)?[eE][+-]?\d+",
    r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])",
)


def letter(said: str, options: Sequence[str]) -> str | None:
    """The last "(A)"; else the last " A "; else, of more than five words, the option named last; else None."""
    for mark in ",.!?;:'":
        said = said.strip(mark)
    said = f" {said} "
    texts = {chr(ord("A") + i): option for i, option in enumerate(options)}
    places = {a: said.rfind(f"({a})") for a in texts if f"({a})" in said}
    places = places or {a: said.rfind(f" {a} ") for a in texts if f" {a} " in said}
    if not places and len(said.split()) > 5:
        lower = said.lower()
        places = {
            a: lower.rfind(text.lower()) for a, text in texts.items() if text.lower() in lower and may_mean(said, text)
        }
    return max(places, key=places.__getitem__) if places else None


def normal(text: str) -> list[str | float]:
    """A number rounded to two places; else lower case, a single character with a space before or after it."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        text = text.lower()
        return [f" {text}", f"{text} "] if len(text) == 1 else [text]


def short_answers(said: str) -> set[str | float]:
    """What a response may mean: what follows the words before an answer in each sentence, and the numbers in it."""
    said = said.strip().strip(".").lower()
    # The sentences are split before a capital, of which lower case has none: in effect, at line ends.
    lines = re.split(r"\.\s(?=[A-Z])|\n", said)
    keys = []
    for number, line in enumerate(lines, start=1):
        before = (*BEFORE_ANSWER, "=") if number == len(lines) else BEFORE_ANSWER
        tails = [line.split(word)[-1].strip() for word in before if word in line]
        key = _shortest(tails)
        if key and key not in (":", ",", ".", "!", "?", ";", "'"):
            keys.append(key)
    keys = keys or [said]
    numbers = (found for key in keys for pattern in NUMBERS for found in re.findall(pattern, key))
    return {form for text in (*keys, *numbers) for form in normal(text)}


def _shortest(tails: Iterable[str]) -> str:
    """The first of the shortest; an empty one is replaced by whatever comes next."""
    best = ""
    for tail in tails:
        if not best or len(tail) < len(best):
            best = tail
    return best


def matches(said: str, truths: Sequence[str]) -> bool:
    """Whether a text of the response holds a true text, or a number of it equals a true one."""
    true = [form for truth in truths for form in normal(truth)]
    return any(
        any(isinstance(form, str) and form in meant for form in true) if isinstance(meant, str) else meant in true
        for meant in short_answers(said)
    )


def _units(questions: Mapping[str, Entry], said: Answers) -> list[Unit]:
    """In the official order, by subject and number, for what cannot be parsed is drawn from one random sequence.

    It is drawn also for an answer that says nothing, so that the other draws are the official ones; but that is wrong.
    """
    rng = random.Random(SEED)
    units = []
    for i in sorted(questions, key=_order):
        entry, kind = questions[i], questions[i].get("question_type", "multiple-choice")
        truths = _list(entry["answer"] if "answer" in entry else entry.get("ground_truth"))
        options = _list(entry.get("options"))
        if kind != "multiple-choice":
            right = not is_empty(said[i]) and matches(said[i], truths)
        elif not options:  # the official answer file has none: its predictions are letters
            right = said[i] in truths
        else:
            letters = [chr(ord("A") + place) for place in range(len(options))]
            read = letter(said[i], options)
            drawn = rng.choice(letters) if read is None else read
            right = drawn in truths and (read is not None or answered(said[i]))
        subject = _order(i)[0]
        groups = (("subject", subject), ("domain", DOMAIN.get(subject, "other")), ("question_type", str(kind)))
        units.append(Unit((float(right), 1.0), groups))
    return units


def _order(i: str) -> tuple[str, int, str]:
    """Subject and number of an id such as validation_Art_Theory_12."""
    parts = i.split("_")
    number = parts[-1]
    return "_".join(parts[1:-1]), int(number) if number.isdecimal() else 0, i


def _list(value: Any) -> list[str]:
    """Options and several answers are lists, or such written as Python does."""
    if isinstance(value, str) and value.startswith("["):
        try:
            value = literal_eval(value)
        except (ValueError, SyntaxError) as error:
            raise InputError(f"MMMU: {value!r} is no list: {error}") from error
    return [] if value is None else [str(v) for v in value] if isinstance(value, list) else [str(value)]


def _prompt(entry: Entry) -> str:
    """`<image N>` stands where an image goes."""
    if entry.get("question_type", "multiple-choice") != "multiple-choice":
        return f"{entry['question']}\n{SHORT}"
    options = "\n".join(f"({chr(ord('A') + i)}) {option}" for i, option in enumerate(_list(entry.get("options"))))
    return f"{entry['question']}\n{options}\n\n{LETTER}"


MMMU = Benchmark(_units, mean("accuracy"), _prompt, truth=("answer", "ground_truth"))
