"""`vla data`: what is said of a store, what of a damaged one, and what a repair leaves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import zarr

from vla import cli
from vla.data import info
from vla.datasets.episodes import EpisodeStore
from vla.types import Episode

Make = Callable[..., Episode]


@pytest.fixture
def path(tmp_path: Path, make_episode: Make) -> Path:
    with EpisodeStore.create(tmp_path / "store", make_episode().embodiment) as store:
        for seed in range(3):
            store.append(make_episode(seed, steps=4 + seed, instruction=f"lift ring {seed % 2}"))
    return tmp_path / "store"


def test_info_says_what_is_there(path: Path) -> None:
    text = info(path)
    for words in ("3 episodes of toy, 1 successful", "15 steps", "4 to 6 an episode", "front 10x8", "2 x lift ring 0"):
        assert words in text
    statistics = EpisodeStore.open(path).statistics()["action"]
    (line,) = (line for line in text.splitlines() if "action grip [rad]" in line)
    assert f"{statistics.q01[2]:.3f}" in line and f"{statistics.max[2]:.3f}" in line


def test_info_counts_outliers(tmp_path: Path, make_episode: Make) -> None:
    episode = make_episode(steps=300)
    action = episode.action.copy()
    action[7, 1] = 1e3
    with EpisodeStore.create(tmp_path / "store", episode.embodiment) as store:
        store.append(replace(episode, action=action))
    flagged = [line.split()[-1] for line in info(tmp_path / "store").splitlines() if "[rad]" in line]
    assert flagged == ["-", "-", "-", "1", "-"]


def test_info_of_an_empty_store(tmp_path: Path, make_episode: Make) -> None:
    EpisodeStore.create(tmp_path / "store", make_episode().embodiment).close()
    assert "0 episodes of toy" in info(tmp_path / "store")


def test_a_sound_store_is_called_sound(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", "check", str(path)]) == 0
    assert "3 episodes, all sound" in capsys.readouterr().out


def test_damage_is_named_and_fails(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = zarr.open_group(path, mode="r+")["state"]
    assert isinstance(state, zarr.Array)
    state[5] = 9.0
    assert cli.main(["data", "check", str(path)]) == 2
    assert "1 of 3 episodes" in (error := capsys.readouterr().err)
    assert "episode 1 of" in error


def test_repair_removes_what_a_killed_writer_left(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    group = zarr.open_group(path, mode="r+")
    for name in ("state", "images/front"):
        stream = group[name]
        assert isinstance(stream, zarr.Array)
        stream.resize((40, *stream.shape[1:]))
    (path / "state" / "left.partial").write_bytes(b"half")
    before = list(EpisodeStore.open(path))
    assert cli.main(["data", "check", str(path)]) == 0
    assert "25 steps" in capsys.readouterr().out
    assert cli.main(["data", "check", str(path), "repair=true"]) == 0
    assert "removed 25 steps" in capsys.readouterr().out
    store = EpisodeStore.open(path)
    assert store.unfinished_frames == 0
    assert not list(path.rglob("*.partial"))
    for ours, theirs in zip(store, before, strict=True):
        np.testing.assert_array_equal(ours.images["front"], theirs.images["front"])
        np.testing.assert_array_equal(ours.state, theirs.state)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["data", "erase", "x"], "not 'erase'"),
        (["data", "info", "nowhere.zarr"], "no episode store"),
        (["data", "info", "x", "repair=true"], "belongs to vla data check"),
        (["data", "info"], "path="),
        (["data", "info", "a", "b"], "cannot use 'b'"),
    ],
)
def test_bad_input_is_named(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 2
    assert message in capsys.readouterr().err
