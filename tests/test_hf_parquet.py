from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from vla.datasets.formats.hf_parquet import detect, open_entries
from vla.datasets.formats.vqa_entries import Rejected, read_items
from vla.datasets.vqa import VqaItem
from vla.errors import InputError


def png(value: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (value, 0, 0)).save(file, "png")
    return file.getvalue()


def read(path: Path, images: Path | None = None) -> tuple[list[VqaItem], list[Rejected]]:
    rejected: list[Rejected] = []
    return list(read_items(open_entries(path, images).entries(), 8, rejected)), rejected


def write(path: Path, columns: dict[str, Any], rows: int = 1000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, row_group_size=rows)
    return path


def asked(items: list[VqaItem]) -> list[tuple[str, str, int]]:
    return [(q.text, q.answer, int(i.images["front"][0, 0, 0])) for i in items for q in i.questions]


@pytest.fixture
def rows() -> dict[str, Any]:
    return {
        "id": [f"row {i}" for i in range(100)],
        "image": [{"bytes": png(i), "path": None} for i in range(100)],
        "question": [f"q{i}" for i in range(100)],
        "answer": [f"a{i}" for i in range(100)],
    }


def test_questions_and_answers_over_files_and_row_groups(tmp_path: Path, rows: dict[str, Any]) -> None:
    for part, name in enumerate(("train-00000-of-00002.parquet", "train-00001-of-00002.parquet")):
        part_of = slice(50 * part, 50 * part + 50)
        write(tmp_path / "set" / "data" / name, {key: column[part_of] for key, column in rows.items()}, rows=7)
    for path in (tmp_path / "set", tmp_path / "set" / "data" / "train-*.parquet"):
        assert detect(path)
        items, rejected = read(path)
        assert asked(items) == [(f"q{i}", f"a{i}", i) for i in range(100)]
        assert rejected == []
    assert {item.source for item in read(tmp_path / "set")[0]} == {"set"}


def test_the_cauldrons_turns_and_llavas(tmp_path: Path) -> None:
    texts = [[{"user": "<image>one?", "assistant": "1", "source": "s"}, {"user": "two?", "assistant": "2"}]]
    images = [[{"bytes": png(5), "path": None}]]
    items, _ = read(write(tmp_path / "a.parquet", {"images": images, "texts": texts}))
    assert asked(items) == [("one?", "1", 5), ("two?", "2", 5)]
    assert {q.kind for q in items[0].questions} == {"conversation"}
    talk = [[{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]] * 2
    items, _ = read(write(tmp_path / "b.parquet", {"image": [png(6), None], "conversations": talk}))
    assert [(item.questions[0].answer, list(item.images)) for item in items] == [("a", ["front"]), ("a", [])]


def test_what_datasets_writes(tmp_path: Path) -> None:
    def generate() -> Iterator[dict[str, Any]]:
        for i in range(5):
            yield {"image": Image.fromarray(np.full((8, 8, 3), i, np.uint8)), "question": "q", "answer": str(i)}

    features = datasets.Features(
        image=datasets.Image(), question=datasets.Value("string"), answer=datasets.Value("string")
    )
    made = datasets.Dataset.from_list(list(generate()), features=features)
    made.to_parquet(tmp_path / "made.parquet")
    made.save_to_disk(tmp_path / "saved")
    for path in (tmp_path / "made.parquet", tmp_path / "saved"):
        assert detect(path)
        assert asked(read(path)[0]) == [("q", str(i), i) for i in range(5)]


def test_bad_rows_are_rejected(tmp_path: Path, rows: dict[str, Any]) -> None:
    (tmp_path / "there.png").write_bytes(png(8))
    image = [None, b"broken", [png(1), png(2)], png(3), png(4)]
    column = [value if isinstance(value, list) else [value] for value in image]
    kept = {"images": column, "question": ["q", "q", "q", " ", "q"], "answer": ["a", "a", "a", "a", None]}
    items, rejected = read(write(tmp_path / "a.parquet", kept))
    assert items == []
    assert [(r.entry, r.reason) for r in rejected] == [
        ("a.parquet:0", "missing image"),
        ("a.parquet:1", "broken image"),
        ("a.parquet:2", "several images"),
        ("a.parquet:3", "empty text"),
        ("a.parquet:4", "malformed entry"),
    ]
    paths = [{"bytes": None, "path": path} for path in ("there.png", "gone.png", "../there.png")]
    items, rejected = read(
        write(tmp_path / "b.parquet", {"image": paths, "question": ["q"] * 3, "answer": ["a"] * 3, "id": [1, 2, 3]})
    )
    assert asked(items) == [("q", "a", 8)]
    assert [(r.entry, r.reason) for r in rejected] == [("2", "missing image"), ("3", "image outside the folder")]


def test_a_text_that_is_not_utf8_costs_one_row(tmp_path: Path) -> None:
    latin = pa.array([b"q0", b"caf\xe9", b"q2"]).view(pa.string())
    path = write(tmp_path / "a.parquet", {"image": [png(i) for i in range(3)], "question": latin, "answer": ["a"] * 3})
    items, rejected = read(path)
    assert asked(items) == [("q0", "a", 0), ("q2", "a", 2)]
    assert [(r.entry, r.reason) for r in rejected] == [("a.parquet:1", "not UTF-8")]


def test_several_splits_are_refused(tmp_path: Path, rows: dict[str, Any]) -> None:
    for split in ("train", "validation"):
        write(tmp_path / "data" / f"{split}-00000-of-00001.parquet", rows)
        write(tmp_path / "folders" / split / "0000.parquet", rows)
    for folder in (tmp_path / "data", tmp_path / "folders"):
        with pytest.raises(InputError, match=r"holds the splits \['train', 'validation'\]: name one"):
            open_entries(folder, None)
    assert len(read(tmp_path / "data" / "train*.parquet")[0]) == len(read(tmp_path / "folders" / "train")[0]) == 100


def test_other_columns_and_damaged_files_are_named(tmp_path: Path, rows: dict[str, Any]) -> None:
    robot = write(tmp_path / "robot" / "episode.parquet", {"action": [[0.0]], "timestamp": [0.0]})
    assert not detect(robot) and not detect(robot.parent) and not detect(tmp_path / "nothing")
    with pytest.raises(InputError, match=r"has the columns \['action', 'timestamp'\]"):
        open_entries(robot, None)
    with pytest.raises(InputError, match=r"no \.parquet or \.arrow file"):
        open_entries(tmp_path / "nothing", None)
    damaged = write(tmp_path / "damaged.parquet", rows)
    damaged.write_bytes(damaged.read_bytes()[:-9])
    assert not detect(damaged)
    with pytest.raises(InputError, match=r"damaged\.parquet cannot be read"):
        open_entries(damaged, None)
    content = bytearray(write(damaged, rows).read_bytes())
    content[4:200] = bytes(196)
    damaged.write_bytes(content)
    with pytest.raises(InputError, match=r"damaged\.parquet cannot be read"):
        read(damaged)
