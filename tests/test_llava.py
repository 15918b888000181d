from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vla.datasets.llava import Rejected, read_llava
from vla.datasets.vqa import VqaItem, VqaStore
from vla.errors import InputError


def talk(*texts: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


def read(folder: Path, entries: Any, rejected: list[Rejected] | None = None) -> list[VqaItem]:
    (folder / "data.json").write_text(json.dumps(entries))
    return list(read_llava(folder / "data.json", folder, 32, rejected))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "coco").mkdir()
    Image.new("RGB", (64, 32), (200, 10, 20)).save(tmp_path / "coco" / "bus.png")
    Image.new("L", (32, 32), 7).save(tmp_path / "gray.png")
    (tmp_path / "broken.jpg").write_bytes(b"not an image")
    return tmp_path


def test_conversations_and_images_are_read(folder: Path) -> None:
    entries = [
        {
            "id": "1",
            "image": "coco/bus.png",
            "conversations": talk("<image>\nWhat is it?", "A bus.", "Its color?", "Red."),
        },
        {"id": "2", "image": "gray.png", "conversations": talk("Describe it.\n<image>", "Gray.")},
        {"id": "3", "conversations": talk("Who are you?", "A robot.")},
    ]
    bus, gray, text = read(folder, entries)
    assert [(q.kind, q.text, q.answer) for q in bus.questions] == [
        ("conversation", "What is it?", "A bus."),
        ("conversation", "Its color?", "Red."),
    ]
    image = bus.images["front"]
    assert image.shape == (32, 32, 3)
    assert (image[16, 16] == (200, 10, 20)).all()
    assert not image[0].any()  # the bar above the wide image
    assert gray.questions[0].text == "Describe it."
    assert (gray.images["front"] == np.uint8(7)).all()
    assert text.images == {}
    assert text.questions[0].answer == "A robot."


BAD = {
    "missing": ({"image": "no.jpg", "conversations": talk("q", "a")}, "no.jpg cannot be read"),
    "broken": ({"image": "broken.jpg", "conversations": talk("q", "a")}, "broken.jpg cannot be read"),
    "list": ({"image": ["a.jpg", "b.jpg"], "conversations": talk("q", "a")}, "not the name of one file"),
    "odd": ({"conversations": talk("q")}, "in turn"),
    "none": ({}, "in turn"),
    "order": ({"conversations": talk("q", "a")[::-1]}, "message 0 is not from 'human'"),
    "text": (
        {"conversations": [{"from": "human", "value": 3}, {"from": "gpt", "value": "a"}]},
        "message 0 has no text",
    ),
    "empty": ({"image": "gray.png", "conversations": talk("<image>", "a")}, "message 0 is empty"),
    "token": ({"conversations": talk("<image>\nq", "a")}, "names none"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_entry_is_left_out_with_its_reason(folder: Path, name: str) -> None:
    entry, reason = BAD[name]
    good = {"id": "good", "conversations": talk("q", "a")}
    rejected: list[Rejected] = []
    assert len(read(folder, [{"id": name, **entry}, good], rejected)) == 1
    (found,) = rejected
    assert found.entry == name
    assert reason in found.reason
    with pytest.raises(InputError, match=f"entry {name}: "):
        read(folder, [good, {"id": name, **entry}])


def test_an_entry_that_is_no_object_is_named_by_its_place(folder: Path) -> None:
    rejected: list[Rejected] = []
    assert read(folder, [{"conversations": talk("q", "a")}, "nonsense"], rejected)
    assert rejected[0].entry == "1"


def test_a_file_that_is_no_list_is_named(folder: Path) -> None:
    with pytest.raises(InputError, match="holds a dict"):
        read(folder, {})
    with pytest.raises(InputError, match=r"absent\.json cannot be read"):
        read_llava(folder / "absent.json", folder, 32)


def test_what_is_read_fits_a_store(folder: Path) -> None:
    store = VqaStore.create(folder / "store", ("front",), 32, 32)
    entries = [
        {"image": "coco/bus.png", "conversations": talk("a?", "b", "c?", "d")},
        {"conversations": talk("e", "f")},
    ]
    store.extend(read(folder, entries))
    first, second = store.examples()
    assert first.turns == (("c?", "d"),)
    assert second.images == {}
