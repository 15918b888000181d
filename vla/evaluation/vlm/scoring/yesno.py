"""Yes/no benchmarks: POPE (Li et al. 2023) and MME (Fu et al. 2023)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Float

from vla.errors import InputError
from vla.evaluation.vlm.scoring.answered import answered
from vla.evaluation.vlm.scoring.benchmark import Benchmark, Unit, categories, question_prompt, ratio
from vla.evaluation.vlm.scoring.files import Answers, Entry, answers, by_id
from vla.evaluation.vlm.scoring.vqa import SHORT

PERCEPTION = ("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR")
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
TASKS = (*PERCEPTION, *COGNITION)


def is_yes(prediction: str) -> bool:
    """POPE's rule: yes, unless the first sentence has the word "No", "no" or "not"."""
    words = prediction.split(".")[0].replace(",", "").split(" ")
    return not {"No", "no", "not"} & set(words)


def yes_or_no(prediction: str) -> str:
    """Reads "yes" or "no" by POPE's rule; empty text for an empty answer, which POPE counts as yes."""
    if not is_yes(prediction):
        return "no"
    return "yes" if answered(prediction) or re.search(r"\byes\b", prediction, re.IGNORECASE) else ""


def _pope_units(questions: Mapping[str, Entry], predictions: Answers) -> list[Unit]:
    """Sums: true positives, false positives, true negatives, false negatives, and negatives without an answer."""
    units = []
    for i, entry in questions.items():
        read = yes_or_no(predictions[i])
        truth = str(entry.get("label", entry.get("answer"))).strip().lower() != "no"
        cells = (
            truth and read == "yes",
            not truth and read == "yes",
            not truth and read == "no",
            truth and read != "yes",
            not truth and not read,
        )
        units.append(Unit(tuple(map(float, cells)), categories(entry, ("category",))))
    return units


def _pope_rates(sums: Float[np.ndarray, "k 5"]) -> dict[str, Float[np.ndarray, " k"]]:
    """The rates; `yes_ratio` is the share of predictions that are yes."""
    tp, fp, tn, fn, unanswered = sums.T
    everything = tp + fp + tn + fn + unanswered
    return {
        "accuracy": ratio(tp + tn, everything),
        "precision": ratio(tp, tp + fp),
        "recall": ratio(tp, tp + fn),
        "f1": ratio(2 * tp, 2 * tp + fp + fn),
        "yes_ratio": ratio(tp + fp, everything),
    }


def label(prediction: str) -> str:
    """MME's rule: yes or no, if the first four characters contain it."""
    start = prediction.lower()[:4]
    return "yes" if "yes" in start else "no" if "no" in start else "other"


def _mme_rows(path: Path, columns: int) -> list[tuple[str, list[str]]]:
    """(id, columns) of each line of each <task>.txt; ids are <task>/<image>/<question>."""
    found = []
    for file in sorted(path.glob("*.txt")):
        if file.stem not in TASKS:
            raise InputError(f"{file} is not a task of MME ({', '.join(TASKS)}): move it out of the folder")
        for number, line in enumerate(file.read_text(encoding="utf-8-sig").split("\n"), start=1):
            cells = line.rstrip("\r").split("\t")
            if line.strip() and len(cells) < columns:
                raise InputError(f"{file}:{number} has {len(cells)} columns; {columns} are needed, separated by tabs")
            if line.strip():
                found.append((f"{file.stem}/{cells[0]}/{cells[1]}", [file.stem, *cells]))
    return found


def _mme_entries(path: Path) -> dict[str, Entry]:
    """The references: a folder of <task>.txt with the columns image, question, truth."""
    keys = ("task", "image", "question", "answer")
    return by_id(path, [(i, dict(zip(keys, cells, strict=False))) for i, cells in _mme_rows(path, 3)])


def _mme_answers(path: Path, questions: Mapping[str, Entry]) -> dict[str, str]:
    """The answers: the same files with a fourth column, or rows with ids."""
    return (
        by_id(path, [(i, "\t".join(cells[4:])) for i, cells in _mme_rows(path, 4)])
        if path.is_dir()
        else answers(path, questions)
    )


def _mme_units(questions: Mapping[str, Entry], predictions: Answers) -> list[Unit]:
    """One unit per image with its two questions. Sums by task: correct answers, questions, correct images, images.

    The official code skips a line with a fifth column: a question whose answer contains a tab is not counted, and its
    image is not correct.
    """
    images: dict[tuple[str, str], list[bool | None]] = {}
    for i, entry in questions.items():
        right = None if "\t" in predictions[i] else label(predictions[i]) == entry["answer"].strip().lower()
        images.setdefault((entry["task"], entry["image"]), []).append(right)
    units = []
    for (task, image), rights in images.items():
        if len(rights) != 2:
            raise InputError(f"MME has two questions per image, but {task}/{image} has {len(rights)}")
        sums = np.zeros((len(TASKS), 4))
        counted = [right for right in rights if right is not None]
        sums[TASKS.index(task)] = sum(counted), len(counted), sum(counted) == 2, 1
        area = "perception" if task in PERCEPTION else "cognition"
        units.append(Unit(tuple(sums.ravel().tolist()), (("task", task), ("area", area))))
    return units


def _mme_rates(sums: Float[np.ndarray, "k d"]) -> dict[str, Float[np.ndarray, " k"]]:
    """A task has 100 (accuracy + accuracy of image pairs) points, at most 200."""
    right, counted, both, images = sums.reshape(len(sums), len(TASKS), 4).transpose(2, 0, 1)
    points = 100 * (ratio(right, counted) + ratio(both, images))
    perception, cognition = points[:, : len(PERCEPTION)].sum(1), points[:, len(PERCEPTION) :].sum(1)
    return {"total": perception + cognition, "perception": perception, "cognition": cognition}


POPE = Benchmark(_pope_units, _pope_rates, question_prompt(SHORT, "text"), truth=("label", "answer"))
# The questions of MME end with "Please answer yes or no."
MME = Benchmark(_mme_units, _mme_rates, question_prompt(), _mme_entries, _mme_answers, truth=("answer",))
