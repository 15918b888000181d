from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vla.datasets.formats.llava import detect, open_entries, read_llava
from vla.datasets.formats.vqa_entries import MAX_TEXT, Rejected
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
    (tmp_path / "bomb.png").write_bytes(bomb(20_000))
    (tmp_path / "large.png").write_bytes(bomb(8000))
    Image.new("RGB", (8, 8)).save(tmp_path.parent / "secret.png")
    return tmp_path


def bomb(side: int) -> bytes:
    """The beginning of a PNG of side x side px: enough to tell its size."""
    header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return data + struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))


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
    assert image.shape == (16, 32, 3)  # half its size, in its own shape
    assert (image == (200, 10, 20)).all()
    assert (gray.questions[0].kind, gray.questions[0].text) == ("open", "Describe it.")
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
    "escape": ({"image": "coco/../../secret.png", "conversations": talk("q", "a")}, "leads out of"),
    "absolute": ({"image": "/etc/passwd", "conversations": talk("q", "a")}, "leads out of"),
    "name": ({"image": "a\0b.png", "conversations": talk("q", "a")}, "cannot be read"),
    "folder": ({"image": "coco", "conversations": talk("q", "a")}, "coco cannot be read"),
    "bomb": ({"image": "bomb.png", "conversations": talk("q", "a")}, "bomb.png decodes to too many pixels"),
    "large": ({"image": "large.png", "conversations": talk("q", "a")}, "too many pixels: 8000 x 8000 px"),
    "long": ({"conversations": talk("q", "a" * (MAX_TEXT + 1))}, "message 1 has 16385 characters"),
    "surrogate": ({"conversations": talk("\ud800", "a")}, "message 0 is not UTF-8"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_entry_is_left_out_with_its_reason(folder: Path, name: str) -> None:
    entry, reason = BAD[name]
    good = {"id": "good", "conversations": talk("q", "a")}
    rejected: list[Rejected] = []
    assert len(read(folder, [{"id": name, **entry}, good], rejected)) == 1
    (found,) = rejected
    assert found.entry == name
    assert reason in found.detail
    with pytest.raises(InputError, match=f"entry {name}: "):
        read(folder, [good, {"id": name, **entry}])


def test_an_entry_that_is_no_object_is_named_by_its_place(folder: Path) -> None:
    rejected: list[Rejected] = []
    assert read(folder, [{"conversations": talk("q", "a")}, "nonsense"], rejected)
    assert rejected[0].entry == "1"


def test_bytes_that_are_not_utf8_cost_one_entry(folder: Path) -> None:
    text = json.dumps([{"id": i, "conversations": talk(word, "a")} for i, word in enumerate(("good", "caf_"))])
    (folder / "data.json").write_bytes(text.encode().replace(b"caf_", b"caf\xe9"))
    rejected: list[Rejected] = []
    (kept,) = read_llava(folder / "data.json", folder, 32, rejected)
    assert kept.questions[0].text == "good"
    assert rejected == [Rejected("1", "not UTF-8", "message 0 is not UTF-8 text")]


def test_links_in_the_image_folder_are_followed(folder: Path) -> None:
    (folder / "link").symlink_to(folder / "coco")
    assert read(folder, [{"image": "link/bus.png", "conversations": talk("q", "a")}])[0].images


def test_it_is_told_by_its_first_entry(folder: Path) -> None:
    read(folder, [{"conversations": talk("q", "a")}])
    assert detect(folder / "data.json")
    for entries in ([], [{"question": "q"}], {"conversations": []}):
        (folder / "data.json").write_text(json.dumps(entries))
        assert not detect(folder / "data.json")
    (folder / "data.json").write_text("{")
    assert not detect(folder / "data.json")
    assert not detect(folder)
    with pytest.raises(InputError, match="holds no list"):
        open_entries(folder / "data.json", None)


def test_a_file_that_is_no_list_is_named(folder: Path) -> None:
    with pytest.raises(InputError, match="holds no list"):
        read(folder, {})
    with pytest.raises(InputError, match=r"absent\.json is missing"):
        read_llava(folder / "absent.json", folder, 32)


def test_what_is_read_fits_a_store(folder: Path) -> None:
    store = VqaStore.create(folder / "store", ("front",), 32, 32, smaller=True)
    entries = [
        {"image": "coco/bus.png", "conversations": talk("a?", "b", "c?", "d")},
        {"conversations": talk("e", "f")},
    ]
    store.extend(read(folder, entries))
    first, second = store.examples()
    assert first.turns == (("c?", "d"),)
    assert second.images == {}
