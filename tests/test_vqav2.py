from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vla.datasets.formats.vqa_entries import Rejected, read_items
from vla.datasets.formats.vqav2 import detect, open_entries
from vla.datasets.questions import Question
from vla.datasets.vqa import VqaItem
from vla.errors import InputError

QUESTIONS = [
    {"image_id": 9, "question": "Is it red?", "question_id": 9000},
    {"image_id": 9, "question": "How many?", "question_id": 9001},
    {"image_id": 25, "question": "What is it?", "question_id": 25000},
]
ANNOTATIONS = [
    {
        "question_id": 25000,
        "multiple_choice_answer": "bus",
        "answer_type": "other",
        "answers": [{"answer": "bus"}] * 8 + [{"answer": "van"}] * 2,
    },
    {"question_id": 9000, "multiple_choice_answer": "yes", "answer_type": "yes/no", "answers": []},
    {"question_id": 9001, "multiple_choice_answer": "2", "answer_type": "number", "answers": []},
]


def write(folder: Path, questions: Any, annotations: Any, split: str = "train2014") -> Path:
    path = folder / f"v2_OpenEnded_mscoco_{split}_questions.json"
    path.write_text(json.dumps({"info": {"year": 2017}, "questions": questions}))
    if annotations is not None:
        notes = {"info": {}, "annotations": annotations, "license": {}}
        (folder / f"v2_mscoco_{split}_annotations.json").write_text(json.dumps(notes))
    for place in (folder, folder / "images" / split):
        place.mkdir(parents=True, exist_ok=True)
        for number in (9, 25):
            Image.new("RGB", (8, 8), (number, 0, 0)).save(place / f"COCO_{split}_{number:012d}.jpg")
    return path


def read(path: Path, images: Path | None = None) -> tuple[list[VqaItem], list[Rejected]]:
    rejected: list[Rejected] = []
    return list(read_items(open_entries(path, images).entries(), 8, rejected)), rejected


def test_questions_find_their_annotations_and_images(tmp_path: Path) -> None:
    path = write(tmp_path, QUESTIONS, ANNOTATIONS)
    assert detect(path) and detect(tmp_path)
    for place, images in ((path, None), (tmp_path, tmp_path), (path, tmp_path / "images")):
        items, rejected = read(place, images)
        assert rejected == []
        assert [question for item in items for question in item.questions] == [
            Question("yes/no", "Is it red?", "yes", "front"),
            Question("number", "How many?", "2", "front"),
            Question("other", "What is it?", "bus", "front", ("bus",) * 8 + ("van",) * 2),
        ]
        assert [int(item.images["front"][0, 0, 0]) for item in items] == pytest.approx([9, 9, 25], abs=3)


def test_what_has_no_counterpart_is_rejected(tmp_path: Path) -> None:
    odd = [*QUESTIONS, QUESTIONS[0], {"image_id": "9", "question": "?", "question_id": 1}, "text"]
    absent = {"image_id": 77, "question": "Where?", "question_id": 77000}
    notes = [*ANNOTATIONS, *({**ANNOTATIONS[0], "question_id": number} for number in (77000, 31)), {"x": 1}]
    items, rejected = read(write(tmp_path, [*odd, absent], notes))
    assert len(items) == 3
    assert [(r.entry, r.reason) for r in rejected] == [
        ("9000", "no annotation"),
        ("1", "malformed entry"),
        ("question 5", "malformed entry"),
        ("77000", "missing image"),
        ("31", "no question"),
    ]
    broken = [{"question_id": 9000, "multiple_choice_answer": ["yes"], "answer_type": "yes/no"}]
    items, rejected = read(write(tmp_path, QUESTIONS[:1], broken))
    assert items == [] and [r.detail for r in rejected] == ["the answer has no text"]


def test_a_split_without_annotations_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, QUESTIONS, None, "test-dev2015")
    assert detect(path)
    with pytest.raises(InputError, match=r"no v2_mscoco_test-dev2015_annotations\.json .* use the train or the val"):
        open_entries(path, None)


def test_several_splits_and_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="found none"):
        open_entries(tmp_path, None)
    for split in ("train2014", "val2014"):
        write(tmp_path, QUESTIONS, ANNOTATIONS, split)
    with pytest.raises(InputError, match="found several: name one"):
        open_entries(tmp_path, None)
    assert not detect(tmp_path / "images")


def test_a_damaged_index_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, QUESTIONS, ANNOTATIONS)
    path.write_text("{")
    with pytest.raises(InputError, match=r"questions\.json cannot be read"):
        open_entries(path, None)
