"""Reader of VQAv2: questions, their annotations, and COCO's images.

| file                                       | content                                                           |
|--------------------------------------------|-------------------------------------------------------------------|
| v2_OpenEnded_mscoco_<split>_questions.json | {questions: [{image_id, question, question_id}, …]}               |
| v2_mscoco_<split>_annotations.json         | {annotations: [{question_id, multiple_choice_answer, answer_type}, …]} |
| COCO_<split>_<image_id, 12 digits>.jpg     | in the image folder, or in its folder <split>                     |

The answer is `multiple_choice_answer`, the most common one of the ten annotators. A question's kind is its
`answer_type`: "yes/no", "number" or "other". All ten answers are kept as its `answers`.
Source: Goyal et al., "Making the V in VQA Matter", 2017.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from sys import intern
from typing import Any

from vla.datasets.formats.json_stream import read_list
from vla.datasets.formats.vqa_entries import BadEntry, Rejected, VqaEntry, VqaSource, attempt, single
from vla.errors import InputError

SOURCE = "vqav2"
_Answers = tuple[str, Any, tuple[str, ...]]
"""Kind, the most common answer, all answers."""
_QUESTIONS = re.compile(r"v2_OpenEnded_mscoco_([\w-]+?)_questions\.json")


def detect(path: Path) -> bool:
    """Whether the path is a question file of VQAv2, by its name, or a folder with one."""
    return bool(_question_files(path))


def open_entries(path: Path, images: Path | None) -> VqaSource:
    """The questions of one split, with the images in `images` (None: the folder of the question file).

    Raises:
        InputError: there is no question file or more than one; it has no annotations next to it, as in the test splits;
            or one of the files is malformed at its beginning.
    """
    files_found = _question_files(path)
    if len(files_found) != 1:
        which = f"several: name one of {[file.name for file in files_found]}" if files_found else "none"
        raise InputError(f"{path}: a question file v2_OpenEnded_mscoco_<split>_questions.json is needed, found {which}")
    questions = files_found[0]
    split = _split(questions)
    annotations = questions.with_name(f"v2_mscoco_{split}_annotations.json")
    if not annotations.is_file():
        raise InputError(
            f"{questions.name} has no {annotations.name} next to it: without answers (VQAv2 publishes none for its "
            "test splits) there are no training targets; use the train or the val split"
        )
    next(read_list(questions, "questions"), None)
    next(read_list(annotations, "annotations"), None)
    folder = images or questions.parent
    folder = folder / split if (folder / split).is_dir() else folder
    return VqaSource((questions, annotations), partial(_entries, questions, annotations, folder, split))


def _question_files(path: Path) -> list[Path]:
    files = sorted(path.glob("v2_*_questions.json")) if path.is_dir() else [path]
    return [file for file in files if _QUESTIONS.fullmatch(file.name) and file.is_file()]


def _split(questions: Path) -> str:
    match = _QUESTIONS.fullmatch(questions.name)
    assert match
    return match[1]


def _entries(questions: Path, annotations: Path, folder: Path, split: str) -> Iterator[VqaEntry | Rejected]:
    """One entry per question. Memory use is a few hundred bytes for each of the dataset's 650,000 questions."""
    answers: dict[int, _Answers] = {}
    for note in read_list(annotations, "annotations"):
        if isinstance(note, dict) and isinstance(note.get("question_id"), int):
            people = note.get("answers")
            raw_answers = [a.get("answer") for a in people if isinstance(a, dict)] if isinstance(people, list) else []
            # Most answers are short texts that occur often.
            texts = tuple(intern(text) for text in raw_answers if isinstance(text, str))
            kind, majority = str(note.get("answer_type")), note.get("multiple_choice_answer")
            answers[note["question_id"]] = (intern(kind), majority, texts)
    for position, question in enumerate(read_list(questions, "questions")):
        name = f"question {position}"
        if isinstance(question, dict):
            name = str(question.get("question_id", name))
        yield attempt(name, partial(_entry, name, question, answers, folder / f"COCO_{split}_"))
    yield from (Rejected(str(number), "no question", "the annotation has no question") for number in answers)


def _entry(name: str, question: Any, answers: dict[int, _Answers], images: Path) -> VqaEntry:
    """The entry of a question. Its answer is removed from `answers`."""
    if not isinstance(question, dict) or not all(isinstance(question.get(k), int) for k in ("question_id", "image_id")):
        raise BadEntry("malformed entry", "a question needs the numbers question_id and image_id")
    if question["question_id"] not in answers:
        raise BadEntry("no annotation", "the question has no annotation, or a second one of its id")
    kind, answer, people = answers.pop(question["question_id"])
    image = images.with_name(f"{images.name}{question['image_id']:012d}.jpg")
    return VqaEntry(name, image, single(question.get("question"), answer, kind, people), SOURCE)
