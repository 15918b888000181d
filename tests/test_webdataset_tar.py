from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
import webdataset
from PIL import Image

from vla.datasets.formats import webdataset_tar
from vla.datasets.formats.vqa_entries import Rejected, read_items
from vla.datasets.formats.webdataset_tar import CAPTION_QUESTION, detect, open_entries
from vla.datasets.questions import Question
from vla.datasets.vqa import VqaItem
from vla.errors import InputError


def png(value: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (value, 0, 0)).save(file, "png")
    return file.getvalue()


def write(path: Path, members: dict[str, bytes | dict[str, Any] | str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as tar:
        for name, value in members.items():
            content = (
                value if isinstance(value, bytes) else (value if isinstance(value, str) else json.dumps(value)).encode()
            )
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def read(path: Path) -> tuple[list[VqaItem], list[Rejected]]:
    rejected: list[Rejected] = []
    return list(read_items(open_entries(path, None).entries(), 8, rejected)), rejected


ASKED = {"question": "q", "answer": "a"}


def test_what_webdataset_writes(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    with webdataset.ShardWriter(str(folder / "train-%06d.tar"), maxcount=2, verbose=0) as sink:
        for i in range(5):
            sink.write({"__key__": f"{i:04d}", "jpg": png(i), "json": {"question": f"q{i}", "answer": f"a{i}"}})
    assert len(list(folder.iterdir())) == 3
    for path in (folder, folder / "train-*.tar"):
        assert detect(path)
        items, rejected = read(path)
        assert [(i.questions, int(i.images["front"][0, 0, 0])) for i in items] == [
            ((Question("open", f"q{i}", f"a{i}", "front"),), i) for i in range(5)
        ]
        assert rejected == [] and {item.source for item in items} == {"shards"}


def test_conversations_captions_and_folders_in_the_tar(tmp_path: Path) -> None:
    talk = [{"from": "human", "value": "<image>\nq"}, {"from": "gpt", "value": "a"}]
    path = write(
        tmp_path / "mixed.tar.gz",
        {
            "x.y/1.PNG": png(1),
            "x.y/1.json": {"conversations": talk},
            "x.y/2.webp": png(2),
            "x.y/2.txt": "A bus.\n",
            "x.y/2.cls": "7",
            "3.json": {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "ho"}]},
        },
    )
    assert detect(path)
    items, rejected = read(path)
    assert rejected == []
    assert [(q.kind, q.text, q.answer, q.camera) for item in items for q in item.questions] == [
        ("open", "q", "a", "front"),
        ("caption", CAPTION_QUESTION, "A bus.", "front"),
        ("open", "hi", "ho", ""),
    ]


def test_bad_samples_are_rejected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webdataset_tar, "MAX_IMAGE_BYTES", 1000)
    path = write(
        tmp_path / "bad.tar",
        {
            "good.png": png(1),
            "good.json": ASKED,
            "alone.png": png(1),
            "blind.json": ASKED,
            "broken.jpg": b"no",
            "broken.json": ASKED,
            "list.png": png(1),
            "list.json": "[]",
            "cut.png": png(1),
            "cut.json": "{",
            "empty.png": png(1),
            "empty.txt": " ",
            "latin.png": png(1),
            "latin.txt": b"caf\xe9",
            "large.png": png(1) + bytes(1000),
            "large.txt": "large",
        },
    )
    items, rejected = read(path)
    assert len(items) == 1
    assert {r.entry.removeprefix("bad.tar:"): r.reason for r in rejected} == {
        "alone": "malformed entry",
        "blind": "missing image",
        "broken": "broken image",
        "list": "malformed entry",
        "cut": "malformed entry",
        "empty": "empty text",
        "latin": "not UTF-8",
        "large": "image too large",
    }


def test_what_is_no_such_tar_is_named(tmp_path: Path) -> None:
    assert not detect(write(tmp_path / "code" / "src.tar", {"main.py": "pass"}))
    assert not detect(tmp_path)
    with pytest.raises(InputError, match=r"no \.tar file"):
        open_entries(tmp_path, None)
    with pytest.raises(InputError, match="leave out images="):
        open_entries(tmp_path / "code", tmp_path)
    broken = write(tmp_path / "broken.tar", {"a.png": png(1), "a.json": ASKED, "b.png": bytes(30_000)})
    content = broken.read_bytes()
    broken.write_bytes(content[:5000])
    with pytest.raises(InputError, match=r"broken\.tar cannot be read"):
        read(broken)
    broken.write_bytes(b"nothing like a tar" * 100)
    assert not detect(broken)
    with pytest.raises(InputError, match=r"broken\.tar cannot be read"):
        open_entries(broken, None)
