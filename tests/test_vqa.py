from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from vla.common.stored_image import decoded
from vla.datasets import vqa
from vla.datasets.formats.easy_vqa_package import read_easy_vqa
from vla.datasets.questions import KINDS, Question
from vla.datasets.vqa import VqaItem, VqaStore
from vla.errors import InputError
from vla.evaluation.vlm.vqa import score

SIZE = 16


def item(seed: int, cameras: tuple[str, ...] = ("front", "wrist"), number: int = 2) -> VqaItem:
    rng = np.random.default_rng(seed)
    images = {camera: rng.integers(0, 256, (SIZE, SIZE, 3), np.uint8) for camera in cameras}
    kinds = rng.choice(KINDS, number)
    asked = tuple(
        Question(str(kind), f"question {i} of {seed}?", f"answer {i}", "front") for i, kind in enumerate(kinds)
    )
    return VqaItem(images, asked, f"source {seed}")


@pytest.fixture
def store(tmp_path: Path) -> VqaStore:
    return VqaStore.create(tmp_path / "vqa.zarr", ("front", "wrist"), SIZE, SIZE)


def same(a: VqaItem, b: VqaItem) -> bool:
    images = a.images.keys() == b.images.keys() and all((a.images[c] == b.images[c]).all() for c in a.images)
    return images and (a.questions, a.source) == (b.questions, b.source)


def test_round_trip_in_batches_of_any_size(store: VqaStore) -> None:
    items = [item(0), item(1, ("wrist",)), item(2, ()), item(3), item(4, ("front",), number=0)]
    store.append(items[:1])
    store.append([])
    store.append(items[1:])
    for opened in (store, VqaStore(store.path)):
        assert len(opened) == 5
        assert all(same(opened[i], items[i]) for i in range(5))
    with pytest.raises(IndexError):
        store[5]


def test_stock_zarr_reads_it(store: VqaStore) -> None:
    store.append([item(0), item(1, ("wrist",))])
    group = zarr.open_group(store.path, mode="r")
    assert group.attrs["items"] == 2
    assert (group["images/front"][0] == item(0).images["front"]).all()  # type: ignore[index]
    assert not group["images/front"][1].any()  # type: ignore[index, union-attr]


@given(text=st.text())
def test_any_text_survives(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    store = VqaStore.create(tmp_path_factory.mktemp("text") / "s", ("front",), 1, 1)
    store.append([VqaItem({}, (Question("color", text, text, ""),), text)])
    assert VqaStore(store.path)[0] == store[0] == VqaItem({}, (Question("color", text, text, ""),), text)


def test_examples_are_one_a_question(store: VqaStore) -> None:
    items = [item(seed) for seed in range(4)]
    store.append(items)
    examples = store.examples()
    asked = [(i.images, question) for i in items for question in i.questions]
    assert len(examples) == len(asked) == 8
    for number, (example, (images, question)) in enumerate(zip(examples, asked, strict=True)):
        assert (example.prompt, example.target, example.turns) == (question.text, question.answer, ())
        assert example.source == f"vqa:{question.kind}"
        assert examples.question(number) == question
        assert all((example.images[camera] == images[camera]).all() for camera in images)
    kind = asked[0][1].kind
    chosen = store.examples(kinds=(kind,), source="mine")
    assert [example.prompt for example in chosen] == [q.text for _, q in asked if q.kind == kind]
    assert {example.source for example in chosen} == {"mine"}
    assert [example.prompt for example in examples[2:4]] == [asked[2][1].text, asked[3][1].text]


def test_a_conversation_stays_one_example(store: VqaStore) -> None:
    turns = tuple(Question(vqa.CONVERSATION, f"q{i}", f"a{i}", "front") for i in range(3))
    store.append([VqaItem(item(0).images, turns, "llava"), item(1)])
    (talk, *rest) = store.examples()
    assert (talk.prompt, talk.target, talk.turns) == ("q0", "a0", (("q1", "a1"), ("q2", "a2")))
    assert len(rest) == 2


def test_conversations_about_one_image_are_told_apart(store: VqaStore) -> None:
    turns = [
        Question(vqa.CONVERSATION, f"{who}{i}", "yes", "front", talk=t) for t, who in enumerate("ab") for i in "01"
    ]
    alone = Question("color", "what color?", "red", "front", answers=("red", "red", "pink"))
    store.append([VqaItem(item(0).images, (turns[0], alone, turns[2], turns[1], turns[3]), "llava")])
    examples = VqaStore(store.path).examples()
    said = [(example.prompt, [question for question, _ in example.turns]) for example in examples]
    assert said == [("what color?", []), ("a0", ["a1"]), ("b0", ["b1"])]
    assert examples.question(0) == alone


def test_the_splits_part_the_images_and_stay_as_the_store_grows(store: VqaStore) -> None:
    items = [item(seed) for seed in range(300)]
    store.extend(items)
    train, held_out = store.split("train").tolist(), store.split("held-out").tolist()
    assert sorted(train + held_out) == list(range(300))
    assert 10 < len(held_out) < 60
    # The same image again, with other questions, falls on the same side.
    store.append([VqaItem(items[i].images, item(1).questions, "again") for i in held_out[:3]])
    assert store.split("held-out").tolist() == [*held_out, 300, 301, 302]
    parts = [[example.prompt for example in store.examples(split)] for split in ("train", "held-out")]
    assert len(parts[0]) == 2 * len(train)
    assert len(parts[1]) == 2 * (len(held_out) + 3)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (item(0, ("front", "left")), "item 1: camera 'left'"),
        (VqaItem({"front": np.zeros((8, 8, 3), np.uint8)}, (), ""), r"item 1: front is uint8 \(8, 8, 3\)"),
    ],
)
def test_a_bad_item_is_named_and_nothing_is_written(store: VqaStore, bad: VqaItem, message: str) -> None:
    with pytest.raises(InputError, match=message):
        store.append([item(0), bad])
    assert len(store) == len(VqaStore(store.path)) == 0


@pytest.mark.parametrize("codec", ["zstd", "jpeg"])
def test_images_of_their_own_sizes(tmp_path: Path, codec: str) -> None:
    """White, so that a lossy codec shows what it bends at the border of what is stored behind the image."""
    store = VqaStore.create(tmp_path / "own.zarr", ("front", "wrist"), SIZE, 2 * SIZE, codec, smaller=True)
    asked = (Question("color", "what color?", "white", "front"),)
    shapes = [(SIZE, 2 * SIZE), (1, 1), (9, 30), (SIZE, 3), (5, 2 * SIZE)]
    items = [VqaItem({"front": np.full((*shape, 3), 255, np.uint8)}, asked, "") for shape in shapes]
    store.append(items)
    for opened in (store, VqaStore(store.path)):
        assert all(same(opened[i], items[i]) for i in range(len(items)))
        for i, shape in enumerate(shapes):
            stored = opened.stored(i)[0]["front"]
            assert stored.shape == (*shape, 3) == opened.examples()[i].images["front"].shape
            assert (decoded({"front": stored})["front"] == 255).all()
    with pytest.raises(InputError, match=r"front is uint8 \(17, 3, 3\), expected uint8 at most \(16, 32, 3\)"):
        store.append([VqaItem({"front": np.zeros((SIZE + 1, 3, 3), np.uint8)}, asked, "")])


def test_what_is_no_store_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no VQA store at .*missing"):
        VqaStore(tmp_path / "missing")
    zarr.create_group(tmp_path / "other")
    with pytest.raises(InputError, match="not a VQA store"):
        VqaStore(tmp_path / "other")
    with pytest.raises(InputError, match="exists"):
        VqaStore.create(tmp_path / "other", ("front",), SIZE, SIZE)
    (tmp_path / "other" / "zarr.json").write_text("{")
    with pytest.raises(InputError, match=r"other.zarr\.json is damaged"):
        VqaStore(tmp_path / "other")


def test_a_damaged_shard_is_named(store: VqaStore) -> None:
    store.append([item(0)])
    shard = Path(store.path) / "images" / "front" / "c" / "0" / "0" / "0" / "0"
    shard.write_bytes(shard.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"shard .*front.* is damaged"):
        VqaStore(store.path)[0]


def test_a_second_writer_must_open_the_store_again(store: VqaStore) -> None:
    other = VqaStore(store.path)
    store.append([item(0)])
    with pytest.raises(InputError, match="grown"):
        other.append([item(1)])
    assert len(VqaStore(store.path)) == 1


APPEND_AND_DIE = """
import os, signal, sys
from pathlib import Path
import numpy as np
from vla.datasets import vqa

replaced, left = Path.replace, [int(sys.argv[2])]

def replace_and_die(*arguments):
    replaced(*arguments)
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)

Path.replace = replace_and_die
image = np.full((16, 16, 3), 9, np.uint8)
vqa.VqaStore(sys.argv[1]).append([vqa.VqaItem({"front": image}, (), "lost")] * 3)
"""
"""Appends and is killed right after the n-th file was replaced."""


@pytest.mark.parametrize("write", [1, 2, 3, 4, 5])
def test_a_writer_killed_mid_append_leaves_the_store_as_it_was(store: VqaStore, write: int) -> None:
    store.append([item(seed) for seed in range(3)])
    command = [sys.executable, "-c", APPEND_AND_DIE, str(store.path), str(write)]
    assert subprocess.run(command).returncode == -signal.SIGKILL
    opened = VqaStore(store.path)
    assert len(opened) == 3
    opened.append([item(6), item(7)])
    again = VqaStore(store.path)
    assert [same(again[i], item(seed)) for i, seed in enumerate((0, 1, 2, 6, 7))] == [True] * 5


def test_easy_vqa_is_whole() -> None:
    pytest.importorskip("easy_vqa")
    train, test = list(read_easy_vqa("train")), list(read_easy_vqa("test"))
    assert (len(train), len(test)) == (4000, 1000)
    assert sum(len(i.questions) for i in train + test) == 48_248
    assert {i.images["front"].shape for i in train} == {(64, 64, 3)}
    answers = {kind: {q.answer for i in train for q in i.questions if q.kind == kind} for kind in KINDS[:3]}
    assert answers["existence"] == {"yes", "no"}
    assert answers["shape"] == {"circle", "rectangle", "triangle"}
    assert len(answers["color"]) == 8


def test_easy_vqa_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "easy_vqa", None)
    with pytest.raises(InputError, match="pip install"):
        read_easy_vqa()


@pytest.mark.parametrize(
    ("kind", "prediction", "answer", "expected"),
    [
        ("existence", "Yes.", "yes", 1),
        ("existence", "yes it is", "yes", 0),
        ("color", " The red ", "red", 1),
        ("count", "three", "3", 1),
        ("count", "", "0", 0),
        ("conversation", "A", "B", 0),
        ("conversation", "A.", "a", 1),
        ("conversation", "?", "!", 0),
        ("caption", "a blue ball and a red cube", "A red cube and a blue ball.", 1),
        ("caption", "a red cube", "a red cube, a blue ball and a green cone", 4 / 9),
        ("detail", "a red red red cube", "a red cube", 2 / 3),
        ("reasoning", "", "two red and one blue, so yes", 0),
        ("point", "50 50", "50 55", 1),
        ("point", "(50, 51)", "53 55", 1),
        ("point", "50 50", "50 56", 0),
        ("point", "50 50", "54 54", 0),
        ("point", "50", "50 50", 0),
        ("point", "50 50 50", "50 50", 0),
        ("point", "5050", "50 50", 0),
    ],
)
def test_scores(kind: str, prediction: str, answer: str, expected: float) -> None:
    assert score(kind, prediction, answer) == expected


@given(st.sampled_from([*KINDS, "other", "caption"]), st.text() | st.from_regex(r"[-\d. ,()]*"), st.text())
def test_scoring_never_raises(kind: str, prediction: str, answer: str) -> None:
    assert 0 <= score(kind, prediction, answer) <= 1 and (
        kind == "caption" or score(kind, prediction, answer) in (0, 1)
    )


@given(st.integers(0, 99), st.integers(0, 99), st.integers(0, 99), st.integers(0, 99))
def test_a_point_is_right_within_five_percent(x: int, y: int, u: int, v: int) -> None:
    assert score("point", f"{x} {y}", f"{u} {v}") == ((x - u) ** 2 + (y - v) ** 2 <= 25)
