"""Answers that are read off the image: DocVQA, ChartQA and OCRBench."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from vla.evaluation.vlm.scoring.benchmark import Benchmark, ask, each, mean, ratio
from vla.evaluation.vlm.scoring.files import Entry
from vla.evaluation.vlm.scoring.vqa import SHORT


def edits(first: str, second: str) -> int:
    """Levenshtein's distance (1966)."""
    goal = np.array([ord(c) for c in second])
    places = np.arange(len(second) + 1)
    row = places
    for number, character in enumerate(first, start=1):
        changed = np.minimum(row[:-1] + (goal != ord(character)), row[1:] + 1)
        # An insertion follows the cell to its left, so the least of what is left of it, less the steps between.
        row = np.minimum.accumulate(np.concatenate(([number], changed)) - places) + places
    return int(row[-1])


def anls(entry: Entry, said: str) -> float:
    """1 less the least normalised edit distance to an answer, 0 below one half (Biten et al. 2019).

    The distance is of lower-case texts with single spaces, but over the length of the texts as they are.
    """
    return max((s if (s := _similarity(said, str(answer))) >= 0.5 else 0.0 for answer in entry["answers"]), default=0.0)


def _similarity(said: str, answer: str) -> float:
    first, second = (" ".join(text.lower().split()) for text in (said, answer))
    length = max(len(said.upper()), len(answer.upper()))
    return 1.0 - edits(first, second) / length if length else 1.0


def relaxed(entry: Entry, said: str) -> float:
    """Within 5 % of a number other than 0; else the same text but for case (Methani et al. 2020)."""
    label = str(entry["label"][0] if isinstance(entry["label"], list) else entry["label"])
    number, target = _number(said), _number(label)
    if number is not None and target:
        return float(abs(number - target) / abs(target) <= 0.05)
    return float(said.lower() == label.lower())


def _number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


def contained(entry: Entry, said: str) -> float:
    """Whether an answer is in what was said: in lower case, or for handwritten mathematics without spaces."""
    known = entry["answers"] if "answers" in entry else entry["answer"]
    mathematics = entry.get("dataset_name", entry.get("dataset")) == "HME100k"

    def form(text: str) -> str:
        text = text.strip().replace("\n", " ")
        return text.replace(" ", "") if mathematics else text.lower()

    answers = known if isinstance(known, list) else [known]
    return float(any(text in form(said) for answer in answers if (text := form(str(answer)))))


def _points(sums: Float[np.ndarray, "k d"]) -> dict[str, Float[np.ndarray, " k"]]:
    """The official score is the number of right answers, of 1000."""
    return {"accuracy": ratio(sums[:, 0], sums[:, 1]), "points": sums[:, 0]}


DOCVQA = Benchmark(each(anls, "question_types"), mean("anls"), ask(SHORT), truth=("answers",))
CHARTQA = Benchmark(
    each(relaxed, "type"),
    mean("relaxed_accuracy"),
    ask("Answer the question with a single word.", "query"),
    truth=("label",),
)
# On the hub `type` is called `question_type`, `answers` `answer` and `dataset_name` `dataset`.
OCRBENCH = Benchmark(
    each(contained, "type", "question_type", "dataset_name"), _points, ask(), truth=("answers", "answer")
)
