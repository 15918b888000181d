from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vla.datasets.format_registry import detect_vqa
from vla.datasets.formats import vqa_import
from vla.datasets.formats.vqa_import import import_vqa
from vla.datasets.formats.vqa_index import VqaIndex
from vla.datasets.vqa import CONVERSATION, VqaStore
from vla.errors import InputError

SIZE = 8
Entry = tuple[int | None, tuple[str, ...]]
"""The number of an image, and questions and answers in turn."""


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    make_pictures(tmp_path)
    return tmp_path


def make_pictures(folder: Path) -> None:
    """Images 0 to 11, of which 10 is broken, and 11 is image 0 in a second file."""
    for number in range(10):
        Image.new("RGB", (SIZE, SIZE), (20 * number, 0, 0)).save(folder / f"{number}.png")
    (folder / "10.png").write_bytes(b"broken")
    (folder / "11.png").write_bytes((folder / "0.png").read_bytes())


def write(folder: Path, entries: list[Entry]) -> Path:
    rows = []
    for number, (image, texts) in enumerate(entries):
        talk = [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]
        rows.append({"id": f"e{number}", "conversations": talk})
        rows[-1] |= {} if image is None else {"image": f"{image}.png"}
    (folder / "data.json").write_text(json.dumps(rows))
    return folder / "data.json"


def contents(path: Path) -> list[tuple[bytes, list[tuple[str, str]]]]:
    """Of each item, the images' bytes and the questions."""
    store = VqaStore(path)
    return [
        (b"".join(image.tobytes() for image in item.images.values()), [(q.text, q.answer) for q in item.questions])
        for item in (store[i] for i in range(len(store)))
    ]


def report(path: Path) -> dict[str, Any]:
    kept: Any = zarr.open_group(path, mode="r").attrs["import"]
    return dict(kept)


def left(folder: Path) -> list[str]:
    """What an import has put beside the data, whole or not."""
    return sorted(name for name in os.listdir(folder) if name.endswith((".import", ".zarr")))


def test_one_item_an_image_and_the_rest_is_counted(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    src = write(
        pictures,
        [
            (0, ("q0", "a0")),
            (1, ("q1", "a1", "and?", "b1")),
            (11, ("q0", "a0")),
            (0, ("q0", "another")),
            (1, ("q1", "a1", "and?", "b1")),
            (1, ("q1", "a1")),
            (None, ("hi", "ho")),
            (None, ("hi", "ho")),
            (10, ("q", "a")),
            (10, ("r", "a")),
            (77, ("q", "a")),
            (2, ("q", "")),
        ],
    )
    import_vqa(src, pictures / "out.zarr", size=SIZE)
    assert [texts for _, texts in contents(pictures / "out.zarr")] == [
        [("q0", "a0"), ("q0", "another")],
        [("q1", "a1"), ("and?", "b1"), ("q1", "a1")],
        [("hi", "ho")],
    ]
    kept = report(pictures / "out.zarr")
    assert json.loads(capsys.readouterr().out) == kept
    counts = {key: value for key, value in kept.items() if isinstance(value, int)}
    assert counts == {
        "entries": 12,
        "items": 3,
        "questions": 6,
        "entries_merged": 5,
        "questions_repeated": 4,
        "questions_with_another_answer": 1,
    }
    assert {reason: fault["entries"] for reason, fault in kept["rejected"].items()} == {
        "broken image": 2,
        "empty text": 1,
        "missing image": 1,
    }
    assert [fault["first"][0]["entry"] for fault in kept["rejected"].values()] == ["e8", "e11", "e10"]
    assert "10.png cannot be read" in kept["rejected"]["broken image"]["first"][0]["detail"]
    assert left(pictures) == ["out.zarr"]


ENTRIES = st.lists(
    st.tuples(st.integers(0, 11) | st.none(), st.lists(st.sampled_from("abc "), min_size=2, max_size=5).map(tuple)),
    min_size=1,
    max_size=25,
)


@settings(max_examples=30)
@given(entries=ENTRIES, data=st.data())
def test_the_order_of_entries_does_not_matter(
    tmp_path_factory: pytest.TempPathFactory, entries: list[Entry], data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("order")
    make_pictures(folder)
    entries = [(9, ("q", "a")), *entries]  # one at least is of use
    sets, counts = [], []
    for number, order in enumerate((entries, data.draw(st.permutations(entries)))):
        import_vqa(write(folder, list(order)), folder / f"{number}.zarr", size=SIZE)
        items = contents(folder / f"{number}.zarr")
        images = [image for image, _ in items if image]
        assert len(images) == len(set(images))
        sets.append({(image, frozenset(texts)) for image, texts in items})
        made = report(folder / f"{number}.zarr")
        rejected = {reason: fault["entries"] for reason, fault in made["rejected"].items()}
        assert made["entries"] == made["items"] + made["entries_merged"] + sum(rejected.values()) == len(entries)
        assert made["questions"] == sum(len(texts) for _, texts in items)
        counts.append((rejected, [value for value in made.values() if isinstance(value, int)]))
    assert sets[0] == sets[1]
    assert counts[0] == counts[1]


MANY: list[Entry] = [(i % 12, (f"q{i % 17}", f"a{i % 5}")) for i in range(60)] + [(None, ("hi", "ho"))]


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vqa_import, "INDEX_BATCH", 8)
    monkeypatch.setattr(vqa_import, "STORE_BATCH", 3)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(
    ("method", "call"), [("commit", 3), ("commit", 6), ("commit", 8), ("append", 1), ("append", 3), ("append", 4)]
)
def test_an_interrupted_import_goes_on(
    pictures: Path, monkeypatch: pytest.MonkeyPatch, small_batches: None, method: str, call: int, after: bool
) -> None:
    src, dst = write(pictures, MANY), pictures / "out.zarr"
    import_vqa(src, pictures / "whole.zarr", size=SIZE)
    owner = VqaIndex if method == "commit" else VqaStore
    whole, calls = getattr(owner, method), [0]

    def interrupted(*arguments: Any, **options: Any) -> Any:
        calls[0] += 1
        if calls[0] == call and not after:
            raise KeyboardInterrupt
        result = whole(*arguments, **options)
        if calls[0] == call:
            raise KeyboardInterrupt
        return result

    with monkeypatch.context() as patch:
        patch.setattr(owner, method, interrupted)
        with pytest.raises(KeyboardInterrupt):
            import_vqa(src, dst, size=SIZE)
    assert left(pictures) == [".out.zarr.import", "whole.zarr"]
    added: list[int] = []
    with monkeypatch.context() as patch:
        add = VqaIndex.add
        patch.setattr(VqaIndex, "add", lambda *arguments: (added.append(arguments[1]), add(*arguments)))
        import_vqa(src, dst, size=SIZE)
    indexed = 8 * (call if after else call - 1) if method == "commit" else len(MANY)
    assert all(place >= indexed for place in added)
    assert contents(dst) == contents(pictures / "whole.zarr")
    assert report(dst) == report(pictures / "whole.zarr")
    assert left(pictures) == ["out.zarr", "whole.zarr"]


KILLED = """
import os, signal, sys
from pathlib import Path
from vla.datasets.formats import vqa_import
from vla.datasets.vqa import VqaStore

vqa_import.STORE_BATCH = 3
append, calls = VqaStore.append, []

def append_and_die(store, items):
    append(store, items)
    calls.append(0)
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGKILL)

VqaStore.append = append_and_die
vqa_import.import_vqa(Path(sys.argv[1]), Path(sys.argv[2]), size=8)
"""


def test_a_killed_import_goes_on(pictures: Path, small_batches: None) -> None:
    src, dst = write(pictures, MANY), pictures / "out.zarr"
    assert subprocess.run([sys.executable, "-c", KILLED, src, dst]).returncode == -signal.SIGKILL
    assert len(VqaStore(pictures / ".out.zarr.import" / "store")) == 6
    import_vqa(src, dst, size=SIZE)
    import_vqa(src, pictures / "whole.zarr", size=SIZE)
    assert contents(dst) == contents(pictures / "whole.zarr")
    assert report(dst) == report(pictures / "whole.zarr")


def test_an_unfinished_import_of_something_else_is_named(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    src, dst = write(pictures, MANY), pictures / "out.zarr"

    def interrupt(*_: Any) -> Iterator[Any]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(VqaStore, "append", interrupt)
        with pytest.raises(KeyboardInterrupt):
            import_vqa(src, dst, size=SIZE)
    with pytest.raises(InputError, match=r"out\.zarr\.import is an unfinished import of .*remove the folder"):
        import_vqa(src, dst, size=SIZE + 1)
    write(pictures, MANY[:5])
    with pytest.raises(InputError, match="unfinished import"):
        import_vqa(src, dst, size=SIZE)
    assert left(pictures) == [".out.zarr.import"]


def test_two_imports_into_one_place(pictures: Path) -> None:
    work = pictures / ".out.zarr.import"
    work.mkdir()
    first = VqaIndex(work / "index.sqlite", {})
    with pytest.raises(InputError, match="another process is importing"):
        import_vqa(write(pictures, MANY), pictures / "out.zarr", size=SIZE)
    first.close()
    assert work.exists()


def test_the_codec_is_the_stores(pictures: Path) -> None:
    import_vqa(write(pictures, MANY), pictures / "out.zarr", images=pictures, size=SIZE, codec="jpeg")
    store = VqaStore(pictures / "out.zarr")
    assert (store.codec, store.height) == ("jpeg", SIZE)
    assert np.allclose(store[3].images["front"], (60, 0, 0), atol=6)


def test_bad_input_leaves_nothing(pictures: Path) -> None:
    src, dst = write(pictures, MANY), pictures / "out.zarr"
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("tensorflow is not known: the VQA formats are llava", {"format": "tensorflow"}),
        ("cannot be detected", {"src": pictures / "absent"}),
        ("absent is missing", {"src": pictures / "absent", "format": "llava"}),
        ("no image folder", {"images": pictures / "absent"}),
        ("size must be 1 px or more", {"size": 0}),
        ("codec", {"codec": "gif"}),
        ("into a local folder", {"dst": Path("s3://bucket/out.zarr")}),
    ]
    for message, options in wrong:
        with pytest.raises(InputError, match=message):
            import_vqa(**({"src": src, "dst": dst, "size": SIZE} | options))
    with pytest.raises(InputError, match="no entry of the source is usable: .*broken image"):
        import_vqa(write(pictures, [(10, ("q", "a"))]), dst, size=SIZE)
    write(pictures, MANY).write_text(src.read_text()[:-1])
    with pytest.raises(InputError, match=r"data\.json cannot be read"):
        import_vqa(src, dst, size=SIZE)
    assert left(pictures) == []
    dst.mkdir()
    with pytest.raises(InputError, match="exists"):
        import_vqa(src, dst, size=SIZE)


def test_easy_vqa_is_imported_with_its_held_out_images_apart(tmp_path: Path) -> None:
    pytest.importorskip("easy_vqa")
    assert detect_vqa(Path("easy-vqa")) == "easy-vqa"
    import_vqa(Path("easy-vqa/test"), tmp_path / "easy.zarr", size=64)
    made = report(tmp_path / "easy.zarr")
    assert made["items"] + made["entries_merged"] == made["entries"] == 1000
    assert made["questions"] + made["questions_repeated"] == 9673
    store = VqaStore(tmp_path / "easy.zarr")
    assert CONVERSATION not in {question.kind for question in store.questions()}
    sides = [
        {store[i].images["front"].tobytes() for i in store.split(split).tolist()} for split in ("train", "held-out")
    ]
    assert len(sides[0]) + len(sides[1]) == len(store)
    assert sides[0].isdisjoint(sides[1])
    assert 50 < len(sides[1]) < 150
    assert np.ptp(store[0].images["front"]) > 0
    with pytest.raises(InputError, match="no split 'val'"):
        import_vqa(Path("easy-vqa/val"), tmp_path / "val.zarr")
    with pytest.raises(InputError, match="leave out images="):
        import_vqa(Path("easy-vqa"), tmp_path / "val.zarr", images=tmp_path)
