"""Text recognition benchmarks: DocVQA, ChartQA and OCRBench."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from vla.evaluation.vlm.scoring.benchmark import Benchmark, mean, per_question, question_prompt, ratio
from vla.evaluation.vlm.scoring.files import Entry, as_list
from vla.evaluation.vlm.scoring.vqa import SHORT

HANDWRITTEN = "Handwritten Mathematical Expression Recognition"


def edits(first: str, second: str) -> int:
    """The Levenshtein distance (1966)."""
    goal = np.array([ord(c) for c in second])
    columns = np.arange(len(second) + 1)
    row = columns
    for number, character in enumerate(first, start=1):
        changed = np.minimum(row[:-1] + (goal != ord(character)), row[1:] + 1)
        # Insertions: the minimum over the cells to the left plus the number of columns between.
        row = np.minimum.accumulate(np.concatenate(([number], changed)) - columns) + columns
    return int(row[-1])


def anls(entry: Entry, prediction: str) -> float:
    """1 minus the smallest normalised edit distance to an answer; 0 below one half (Biten et al. 2019).

    The distance is computed on lower-case text with single spaces, and divided by the length of the original text.
    """
    return max(
        (s if (s := _similarity(prediction, answer)) >= 0.5 else 0.0 for answer in as_list(entry["answers"])),
        default=0.0,
    )


def _similarity(prediction: str, answer: str) -> float:
    first, second = (" ".join(text.lower().split()) for text in (prediction, answer))
    length = max(len(prediction.upper()), len(answer.upper()))
    return 1.0 - edits(first, second) / length if length else 1.0


def relaxed(entry: Entry, prediction: str) -> float:
    """Relaxed accuracy: within 5 % of a non-zero number, else equal text ignoring case (Methani et al. 2020)."""
    label = str(entry["label"][0] if isinstance(entry["label"], list) else entry["label"])
    number, target = _number(prediction), _number(label)
    if number is not None and target:
        return float(abs(number - target) / abs(target) <= 0.05)
    return float(prediction.lower() == label.lower())


def _number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def contained(entry: Entry, prediction: str) -> float:
    """Whether the prediction contains an answer, in lower case, or without spaces for handwritten mathematics."""
    mathematics = entry.get("dataset_name", entry.get("dataset")) == "HME100k" or entry.get("category") == HANDWRITTEN

    def form(text: str) -> str:
        text = text.strip().replace("\n", " ")
        return text.replace(" ", "") if mathematics else text.lower()

    if isinstance(known := entry.get("answers"), str):  # in the official file, a text is one answer, which may be "[x]"
        known = [known]
    answers = as_list(entry["answer"] if known is None else known)
    return float(any(text in form(prediction) for answer in answers if (text := form(answer))))


def _points(sums: Float[np.ndarray, "k d"]) -> dict[str, Float[np.ndarray, " k"]]:
    """The official score is the number of correct answers, of 1000."""
    return {"accuracy": ratio(sums[:, 0], sums[:, 1]), "points": sums[:, 0]}


DOCVQA = Benchmark(per_question(anls, "question_types"), mean("anls"), question_prompt(SHORT), truth=("answers",))
CHARTQA = Benchmark(
    per_question(relaxed, "type"),
    mean("relaxed_accuracy"),
    question_prompt("Answer the question with a single word.", "query"),
    truth=("label",),
)
# In the hub's version, `type` is `question_type`, `answers` is `answer`, and `dataset_name` is `dataset`. In the TSV of
# VLMEvalKit, the type is `category`, and `answer` the text of a list.
OCRBENCH = Benchmark(
    per_question(contained, "type", "question_type", "category", "dataset_name"),
    _points,
    question_prompt(),
    truth=("answers", "answer"),
)
