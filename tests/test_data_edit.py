"""Stores made from stores, and stores changed in place: the right episodes, whole or not at all."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from vla.commands import cli, options
from vla.datasets.episodes import EpisodeStore
from vla.datasets.tools import atomic_store as whole
from vla.datasets.tools.copies import draw_parts
from vla.errors import InputError
from vla.types import Episode, Span

Make = Callable[..., Episode]
WORDS = ("lift the red ring", "lift the blue ring", "turn the red knob")


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory, make_episode: Make) -> Callable[..., Path]:
    """Stores of six episodes, each made once: seeds from `first`, 3 to 8 steps, every second successful."""

    @cache
    def make(name: str, first: int, codec: str, paraphrases: tuple[str, ...]) -> Path:
        path = tmp_path_factory.mktemp("built") / name
        with EpisodeStore.create(path, make_episode().embodiment, codec, {"source": name}) as store:
            for seed in range(first, first + 6):
                said = {"instruction": WORDS[seed % 3], "paraphrases": paraphrases, "spans": (Span(0, 2, "reach"),)}
                store.append(make_episode(seed, steps=3 + seed % 6, **said))
        return path

    return make


@pytest.fixture
def build(tmp_path: Path, built: Callable[..., Path]) -> Callable[..., Path]:
    """Puts a copy of such a store into the test's folder."""

    def make(name: str = "a.zarr", first: int = 0, codec: str = "zstd", paraphrases: tuple[str, ...] = ()) -> Path:
        return Path(shutil.copytree(built(name, first, codec, paraphrases), tmp_path / name))

    return make


def run(*arguments: object) -> int:
    return cli.main(["data", *map(str, arguments)])


def seeds(path: Path) -> list[int]:
    """What is in a store, in its order; every episode is read and compared with its checksum."""
    return [episode.info["seed"] for episode in EpisodeStore.open(path)]


def tree(folder: Path) -> dict[str, bytes]:
    """All files, hidden ones too."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@given(st.text(st.characters(codec="utf-8", exclude_characters="\n\r\0"), min_size=2))
def test_any_words_can_be_an_instruction(text: str) -> None:
    overrides, _ = cli.parse("data", ["edit", "a.zarr", f"instruction={text}"])
    value = options.OverridesParser.create().parse_overrides(overrides)[-1].value()
    assert value == (text[1:-1] if re.fullmatch(r"'[^'\\]*'|\"[^\"\\]*\"", text) else text)


def test_merge_holds_all_in_order(build: Callable[..., Path], tmp_path: Path) -> None:
    first, second, third = build("a.zarr"), build("it's, b.zarr", 20), build("c.zarr", 10)
    assert run("merge", first, second, third, f"out={tmp_path / 'all.zarr'}") == 0
    assert seeds(tmp_path / "all.zarr") == [*range(6), *range(20, 26), *range(10, 16)]
    merged = EpisodeStore.open(tmp_path / "all.zarr")
    assert merged[7].spans == (Span(0, 2, "reach"),)
    assert [each["source"] for each in merged.provenance["merged from"]] == ["a.zarr", "it's, b.zarr", "c.zarr"]


@pytest.mark.parametrize("codec", ["jpeg", "webp"])
def test_lossy_images_are_copied_as_they_are_coded(codec: str, build: Callable[..., Path], tmp_path: Path) -> None:
    path, out = build(codec=codec), tmp_path / "b.zarr"
    assert run("filter", path, f"out={out}", "episodes=2,4:6") == 0
    source, target = EpisodeStore.open(path), EpisodeStore.open(out)
    assert target.codec == codec
    for ours, theirs in zip((2, 4, 5), target, strict=True):
        np.testing.assert_array_equal(source[ours].images["wrist"], theirs.images["wrist"])


def test_stores_of_different_codecs_merge_without_loss(build: Callable[..., Path], tmp_path: Path) -> None:
    lossy, lossless = build("a.zarr", codec="jpeg"), build("b.zarr", 6)
    assert run("merge", lossy, lossless, f"out={tmp_path / 'c.zarr'}") == 0
    parts = [*EpisodeStore.open(lossy), *EpisodeStore.open(lossless)]
    for ours, theirs in zip(parts, EpisodeStore.open(tmp_path / "c.zarr"), strict=True):
        np.testing.assert_array_equal(ours.images["front"], theirs.images["front"])


def test_other_robots_and_other_pictures_cannot_be_merged(
    build: Callable[..., Path], tmp_path: Path, make_episode: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    robot = make_episode().embodiment
    build("a.zarr")
    turned = replace(robot, state=("lift [rad]", "turn [deg]"), action_state=())
    EpisodeStore.create(tmp_path / "turned.zarr", turned).close()
    wide = {camera: np.zeros((4, 8, 12, 3), np.uint8) for camera in robot.cameras}
    with EpisodeStore.create(tmp_path / "wide.zarr", robot) as store:
        store.append(make_episode(steps=4, images=wide))
    before = tree(tmp_path)
    for other, message in (("turned.zarr", "turn [deg]"), ("wide.zarr", "camera front has 10x8 pixels")):
        assert run("merge", tmp_path / "a.zarr", tmp_path / other, f"out={tmp_path / 'c.zarr'}") == 2
        assert message in capsys.readouterr().err
    assert tree(tmp_path) == before


def test_split_puts_every_episode_in_one_part(build: Callable[..., Path], tmp_path: Path) -> None:
    parts = "parts={train: 0.67, test: 0.33}"
    assert run("split", build(), f"out={tmp_path / 'one'}", parts, "seed=3") == 0
    assert run("split", tmp_path / "a.zarr", f"out={tmp_path / 'two'}", parts, "seed=3") == 0
    train, test = (seeds(tmp_path / "one" / f"{name}.zarr") for name in ("train", "test"))
    assert sorted(train + test) == list(range(6)) and len(test) == 2
    assert (train, test) == (sorted(train), sorted(test))
    assert seeds(tmp_path / "two" / "test.zarr") == test


@given(count=st.integers(10, 500), weights=st.lists(st.integers(1, 5), min_size=1, max_size=4), seed=st.integers(0, 9))
def test_parts_have_their_shares(count: int, weights: list[int], seed: int) -> None:
    shares = {f"part{i}": weight / sum(weights) for i, weight in enumerate(weights)}
    try:
        drawn = draw_parts(count, shares, seed)
    except InputError:
        assert min(shares.values()) * count < 1
        return
    assert sorted(index for part in drawn.values() for index in part) == list(range(count))
    assert all(abs(len(drawn[name]) - share * count) <= 1 for name, share in shares.items())


@pytest.mark.parametrize(
    ("conditions", "kept"),
    [
        (["success=true"], [1, 3, 5]),
        (["success=false", "min_steps=5"], [2, 4]),
        (["instruction=*RED*"], [0, 2, 3, 5]),
        (["instruction=lift the blue ring"], [1, 4]),
        (["min_steps=4", "max_steps=6", "episodes=0,2:5"], [2, 3]),
    ],
)
def test_filter_keeps_what_fits(
    conditions: list[str], kept: list[int], build: Callable[..., Path], tmp_path: Path
) -> None:
    assert run("filter", build(), f"out={tmp_path / 'b.zarr'}", *conditions) == 0
    assert seeds(tmp_path / "b.zarr") == kept


@pytest.mark.parametrize("swap", ["exchange", "rename"])
def test_delete_moves_the_others_up(
    swap: str, build: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if swap == "rename":
        monkeypatch.setattr(whole, "_renameat2", lambda new, old: False)
    assert run("delete", build(), "episodes=1,3:5") == 0
    assert seeds(tmp_path / "a.zarr") == [0, 2, 5]
    assert EpisodeStore.open(tmp_path / "a.zarr").provenance == {"source": "a.zarr"}
    assert [path.name for path in tmp_path.iterdir()] == ["a.zarr"]


def test_edit_rewrites_no_image(build: Callable[..., Path]) -> None:
    path = build()
    before = {name: content for name, content in tree(path).items() if name.startswith(("images", "state", "time"))}
    assert run("edit", path, "episodes=0,4:6", "instruction=it's the ring, lift it", "success=true") == 0
    assert run("edit", path, "episodes=4", "paraphrases=[raise it, take it]") == 0
    store = EpisodeStore.open(path)
    assert [record.instruction for record in store.records] == [
        *("it's the ring, lift it", *WORDS[1:], WORDS[0]),
        *["it's the ring, lift it"] * 2,
    ]
    assert [record.success for record in store.records] == [True, True, False, True, True, True]
    assert (store[4].paraphrases, store[5].paraphrases) == (("raise it", "take it"), ())
    after = tree(path)
    assert all(after[name] == content for name, content in before.items())


def test_rename_of_words_reaches_every_place(build: Callable[..., Path]) -> None:
    path = build(paraphrases=("lift the red ring", "up"))
    assert run("rename", path, "instructions={lift the red ring: take it, reach: go there}") == 0
    store = EpisodeStore.open(path)
    assert [record.instruction for record in store.records] == ["take it", *WORDS[1:]] * 2
    assert {record.paraphrases for record in store.records} == {("take it", "up")}
    assert {record.spans for record in store.records} == {(Span(0, 2, "go there"),)}


def test_rename_of_robot_and_cameras_keeps_the_pictures(build: Callable[..., Path]) -> None:
    path = build(codec="jpeg")
    before = list(EpisodeStore.open(path))
    assert (
        run("rename", path, "embodiment=left arm", "cameras={front: wrist, wrist: front}", "instructions={reach: go}")
        == 0
    )
    store = EpisodeStore.open(path)
    assert (store.embodiment.name, store.embodiment.cameras) == ("left arm", ("wrist", "front"))
    assert store[0].spans == (Span(0, 2, "go"),)
    for ours, theirs in zip(before, store, strict=True):
        np.testing.assert_array_equal(ours.images["front"], theirs.images["wrist"])
        np.testing.assert_array_equal(ours.images["wrist"], theirs.images["front"])


def test_rename_of_components_adds_a_missing_unit(build: Callable[..., Path]) -> None:
    path, other = build(), EpisodeStore.open(build("other"))
    body, episode = other.embodiment, other[0]
    full, *rest = body.state
    assert (bare := full.removesuffix(" [rad]")) != full
    assert run("rename", path, f"components={{'{full}': {bare}}}") == 0
    store = EpisodeStore.open(path)
    assert store.embodiment.state == (bare, *rest)
    assert store.embodiment.action == tuple(bare if name == full else name for name in body.action)
    np.testing.assert_array_equal(store[0].state, episode.state)
    with pytest.raises(InputError, match=r"if lift is in that unit too, name it: vla data rename STORE"):
        store.embodiment.union([body])
    assert run("rename", path, f"components={{{bare}: '{full}'}}") == 0
    assert EpisodeStore.open(path).embodiment == body


BAD = [
    (["filter", "a.zarr", "out=b.zarr", "success=true", "max_steps=3"], "none of 6 episodes fits"),
    (["filter", "a.zarr", "out=b.zarr"], "set at least one of episodes="),
    (["filter", "a.zarr", "out=a.zarr", "success=true"], "exists"),
    (["filter", "a.zarr", "out=s3://bucket/b.zarr", "success=true"], "only a local folder can be created"),
    (["merge", "a.zarr", "nowhere.zarr", "out=c.zarr"], "no episode store at nowhere.zarr"),
    (["rename", "a.zarr", "components={elbow: 'elbow [rad]'}"], "there is no component 'elbow'"),
    (["rename", "a.zarr", "components={'lift [rad]': 'turn [rad]'}"], "two components would have the same name"),
    (["split", "a.zarr", "out=d", "parts={train: 0.5, test: 0.4}"], "sum to 1"),
    (["split", "a.zarr", "out=d", "parts={train: 1.5, test: -0.5}"], "positive"),
    (["split", "a.zarr", "out=d", "parts={train: 0.99, test: 0.01}"], "test: 0.01 of 6 episodes is none"),
    (["split", "a.zarr", "out=d", "parts={a/b: 1.0}"], "'a/b'"),
    (["split", "a.zarr", "out=d", "parts={a: 1}", "seed=-1"], "the seed must be 0 or more"),
    (["merge", "a.zarr", "a.zarr", "out=a.zarr/c.zarr"], "would lie inside the store"),
    (["merge", "a.zarr", "a.zarr", "out=file/c.zarr"], "Not a directory"),
    (["delete", "a.zarr", "episodes=6"], "not among the 6 episodes"),
    (["delete", "a.zarr", "episodes=:"], "remove the folder instead"),
    (["edit", "a.zarr", "episodes=1"], "set at least one of instruction="),
    (["edit", "a.zarr", "episodes=1,7", "success=true"], "'7' is not among"),
    (["rename", "a.zarr"], "set at least one of embodiment="),
    (["rename", "a.zarr", "cameras={top: front}"], "no camera 'top'"),
    (["rename", "a.zarr", "cameras={wrist: front}"], "the same name"),
    (["rename", "a.zarr", "cameras={wrist: a/b}"], "not a valid camera name"),
    (["rename", "a.zarr", "instructions={fly: walk}"], "no episode has the instruction 'fly'"),
]


def test_bad_input_is_named_and_nothing_is_written(
    build: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    build()
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    before = tree(tmp_path)
    for arguments, message in BAD:
        assert run(*arguments) == 2, arguments
        assert message in capsys.readouterr().err, arguments
        assert tree(tmp_path) == before, arguments


def test_a_store_that_is_written_to_is_left_alone(
    build: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path = build()
    with EpisodeStore.open(path, "a"):
        assert run("delete", path, "episodes=1") == 2
        assert run("edit", path, "episodes=1", "success=true") == 2
    assert capsys.readouterr().err.count("another process is writing") == 2
    assert seeds(path) == list(range(6))


def test_two_cannot_make_one_store(tmp_path: Path) -> None:
    with whole.atomic_create(str(tmp_path / "a")) as new:
        new.mkdir()
        with pytest.raises(InputError, match="another process is creating"), whole.atomic_create(str(tmp_path / "a")):
            pass
    assert (tmp_path / "a").is_dir()


ACTIONS = [
    ["merge", "a.zarr", "b.zarr", "out=c.zarr"],
    ["split", "a.zarr", "out=parts", "parts={train: 0.5, test: 0.5}"],
    ["filter", "a.zarr", "out=c.zarr", "min_steps=4"],
    ["delete", "a.zarr", "episodes=0"],
    ["rename", "a.zarr", "cameras={front: top}"],
    ["edit", "a.zarr", "episodes=:", "instruction=other"],
]


@pytest.mark.parametrize("arguments", ACTIONS, ids=lambda arguments: arguments[0])
def test_a_failure_on_the_way_leaves_no_trace(
    arguments: list[str], build: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build("a.zarr")
    build("b.zarr", 6)
    monkeypatch.chdir(tmp_path)
    before = tree(tmp_path)

    kept, calls = EpisodeStore.append_from, []

    def fail(*given: Any, **options: Any) -> None:
        calls.append(given)
        if len(calls) > 1 or arguments[0] == "edit":
            raise OSError("no space left on device")
        kept(*given, **options)

    if arguments[0] == "edit":
        # It is one change of the attributes, after the new index is written.
        monkeypatch.setattr(zarr.Group, "update_attributes", fail)
    else:
        monkeypatch.setattr(EpisodeStore, "append_from", fail)
    assert run(*arguments) == 2
    monkeypatch.undo()
    after = tree(tmp_path)
    assert {name: after[name] for name in before} == before
    assert not [path for path in tmp_path.iterdir() if path.name not in ("a.zarr", "b.zarr")]
    assert (seeds(tmp_path / "a.zarr"), seeds(tmp_path / "b.zarr")) == (list(range(6)), list(range(6, 12)))


KILLED = """
import os, signal, sys
from vla.commands import cli
from vla.commands import options
from vla.datasets.episodes import EpisodeStore
from vla.datasets.tools import atomic_store as whole

def at_second_call(owner, name):
    function, calls = getattr(owner, name), []
    def killed(*arguments, **options):
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    setattr(owner, name, killed)

def after(owner, name):
    function = getattr(owner, name)
    def killed(*arguments):
        function(*arguments)
        os.kill(os.getpid(), signal.SIGKILL)
    setattr(owner, name, killed)

exec(sys.argv[1])
sys.exit(cli.main(["data", *sys.argv[2:]]))
"""


def kill(folder: Path, where: str, arguments: list[str]) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", KILLED, where, *arguments], cwd=folder, capture_output=True, text=True
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr


@pytest.mark.parametrize("arguments", (ACTIONS[1], ACTIONS[3]), ids=lambda arguments: arguments[0])
def test_kill_in_the_middle_leaves_the_old_and_the_next_run_ends_it(
    arguments: list[str], build: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build("a.zarr")
    build("b.zarr", 6)
    before = tree(tmp_path)
    kill(tmp_path, "at_second_call(EpisodeStore, 'append_from')", arguments)
    after = tree(tmp_path)
    assert {name: after[name] for name in before} == before
    assert all(name.startswith(".") for name in after.keys() - before.keys())
    monkeypatch.chdir(tmp_path)
    assert run(*arguments) == 0
    made = {"parts"} if arguments[0] == "split" else set()
    assert {path.name for path in tmp_path.iterdir()} == {"a.zarr", "b.zarr"} | made
    assert seeds(tmp_path / "a.zarr") == list(range(arguments[0] == "delete", 6))


def test_kill_during_the_swap_loses_nothing(
    build: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = build("a.zarr")
    kill(tmp_path, "after(whole, '_exchange')", ["delete", "a.zarr", "episodes=0"])
    assert seeds(path) == [1, 2, 3, 4, 5]
    # Where two folders cannot be swapped in one step, the old one is aside for a moment.
    kill(
        tmp_path,
        "whole._renameat2 = lambda new, old: False; after(whole, '_move_to_backup')",
        ["delete", "a.zarr", "episodes=0"],
    )
    assert not path.exists() and seeds(tmp_path / ".a.zarr.old") == [1, 2, 3, 4, 5]
    assert run("delete", path, "episodes=0") == 0
    assert seeds(path) == [2, 3, 4, 5]
    assert [each.name for each in tmp_path.iterdir()] == ["a.zarr"]
