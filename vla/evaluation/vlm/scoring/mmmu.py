"""MMMU (Yue et al. 2024): the official parser of letters and short answers."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Mapping, Sequence

from vla.errors import InputError
from vla.evaluation.vlm.scoring.answered import answered, is_empty, may_mean
from vla.evaluation.vlm.scoring.benchmark import Benchmark, Unit, mean
from vla.evaluation.vlm.scoring.choice import LETTER
from vla.evaluation.vlm.scoring.files import Answers, Entry, as_list
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


def letter(prediction: str, options: Sequence[str]) -> str | None:
    """The letter of the last "(A)"; else of the last " A "; else, in more than five words, of the last option text."""
    for mark in ",.!?;:'":
        prediction = prediction.strip(mark)
    prediction = f" {prediction} "
    texts = {chr(ord("A") + i): option for i, option in enumerate(options)}
    positions = {a: prediction.rfind(f"({a})") for a in texts if f"({a})" in prediction}
    positions = positions or {a: prediction.rfind(f" {a} ") for a in texts if f" {a} " in prediction}
    if not positions and len(prediction.split()) > 5:
        lower = prediction.lower()
        positions = {
            a: lower.rfind(text.lower())
            for a, text in texts.items()
            if text.lower() in lower and may_mean(prediction, text)
        }
    return max(positions, key=positions.__getitem__) if positions else None


def normal(text: str) -> list[str | float]:
    """A number rounded to two decimals; else lower case, where a single character gets a space before or after it."""
    text = text.strip()
    try:
        return [round(float(text.replace(",", "")), 2)]
    except ValueError:
        text = text.lower()
        return [f" {text}", f"{text} "] if len(text) == 1 else [text]


def short_answers(prediction: str) -> set[str | float]:
    """The possible answers in a response: the text after an answer phrase in each sentence, and its numbers."""
    prediction = prediction.strip().strip(".").lower()
    # As in the official code: sentences are split before capitals, of which lower-case text has none.
    lines = re.split(r"\.\s(?=[A-Z])|\n", prediction)
    keys = []
    for number, line in enumerate(lines, start=1):
        before = (*BEFORE_ANSWER, "=") if number == len(lines) else BEFORE_ANSWER
        tails = [line.split(word)[-1].strip() for word in before if word in line]
        key = _shortest(tails)
        if key and key not in (":", ",", ".", "!", "?", ";", "'"):
            keys.append(key)
    keys = keys or [prediction]
    numbers = (found for key in keys for pattern in NUMBERS for found in re.findall(pattern, key))
    return {form for text in (*keys, *numbers) for form in normal(text)}


def _shortest(tails: Iterable[str]) -> str:
    """The first of the shortest non-empty texts; as in the official code, an empty text is replaced by the next one."""
    best = ""
    for tail in tails:
        if not best or len(tail) < len(best):
            best = tail
    return best


def matches(prediction: str, truths: Sequence[str]) -> bool:
    """Whether a possible answer of the response contains a true text or equals a true number."""
    true = [form for truth in truths for form in normal(truth)]
    return any(
        any(isinstance(form, str) and form in meant for form in true) if isinstance(meant, str) else meant in true
        for meant in short_answers(prediction)
    )


def _units(questions: Mapping[str, Entry], predictions: Answers) -> list[Unit]:
    """The units in the official order (subject, number), since unparsed answers use one random sequence.

    Empty answers advance the sequence as well, so that the other samples equal the official ones, but are wrong.
    """
    rng = random.Random(SEED)
    units = []
    for i in sorted(questions, key=_order):
        entry, kind = questions[i], questions[i].get("question_type", "multiple-choice")
        truths = as_list(entry["answer"] if "answer" in entry else entry.get("ground_truth"))
        options = as_list(entry.get("options"))
        if "A" in entry and not options:
            raise InputError(
                "MMMU: these references have a column per option, as VLMEvalKit's TSV: use the official parquet"
            )
        if kind != "multiple-choice":
            right = not is_empty(predictions[i]) and matches(predictions[i], truths)
        elif not options:  # the official answer file has no options; its predictions are letters
            right = predictions[i] in truths
        else:
            letters = [chr(ord("A") + index) for index in range(len(options))]
            parsed = letter(predictions[i], options)
            selected = rng.choice(letters) if parsed is None else parsed
            right = selected in truths and (parsed is not None or answered(predictions[i]))
        subject = _order(i)[0]
        groups = (("subject", subject), ("domain", DOMAIN.get(subject, "other")), ("question_type", str(kind)))
        units.append(Unit((float(right), 1.0), groups))
    return units


def _order(i: str) -> tuple[str, int, str]:
    """Subject and number of an id such as validation_Art_Theory_12."""
    fields = i.split("_")
    number = fields[-1]
    return "_".join(fields[1:-1]), int(number) if number.isdecimal() else 0, i


def _prompt(entry: Entry) -> str:
    """The prompt; `<image N>` marks the position of an image."""
    if entry.get("question_type", "multiple-choice") != "multiple-choice":
        return f"{entry['question']}\n{SHORT}"
    options = "\n".join(f"({chr(ord('A') + i)}) {option}" for i, option in enumerate(as_list(entry.get("options"))))
    return f"{entry['question']}\n{options}\n\n{LETTER}"


MMMU = Benchmark(_units, mean("accuracy"), _prompt, truth=("answer", "ground_truth"))
