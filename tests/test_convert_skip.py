"""`vla convert skip=true`: what cannot be read is left out and listed, whatever the format; without it, it is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from conftest import write_store
from test_lerobot_v21 import write_v21

from vla.commands import cli
from vla.datasets.episodes import EpisodeStore
from vla.datasets.formats import lerobot_v3
from vla.types import Episode

Make = Callable[..., Episode]
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 123\n"


def run(*arguments: str | Path) -> int:
    return cli.main(["convert", *map(str, arguments)])


def run_v21(*arguments: str | Path) -> int:
    return run(*arguments, "actions=absolute")  # random ones say nothing


def store_of(path: Path, episodes: list[Episode]) -> Path:
    write_store(path, episodes)
    return path


@pytest.fixture(scope="module")
def v21(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_v21(tmp_path_factory.mktemp("v21") / "toy", {"ego": range(3)})


def data_file(root: Path, episode: int) -> Path:
    return next(root.rglob(f"episode_{episode:06d}.parquet"))


def video_file(root: Path, episode: int) -> Path:
    return next(root.rglob(f"episode_{episode:06d}.mp4"))


def with_nan(root: Path) -> None:
    table = pq.read_table(data_file(root, 1))
    rows = table["state.joints"].to_pylist()
    rows[2][0] = float("nan")
    position = table.column_names.index("state.joints")
    pq.write_table(table.set_column(position, "state.joints", pa.array(rows)), data_file(root, 1))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGE: Mapping[str, tuple[Callable[[Path], Any], str]] = {
    "nan": (with_nan, "step 2: joints[0] is not finite"),
    "no rows": (lambda root: data_file(root, 1).unlink(), "episode_000001.parquet is missing"),
    "pointer": (lambda root: data_file(root, 1).write_bytes(POINTER), "episode_000001.parquet is a Git LFS pointer"),
    "cut rows": (lambda root: cut(data_file(root, 1)), "episode_000001.parquet cannot be read as Parquet"),
    "too few rows": (
        lambda root: pq.write_table(pq.read_table(data_file(root, 1)).slice(0, 4), data_file(root, 1)),
        "has 4 rows, meta/episodes.jsonl states 6",
    ),
    "no task": (
        lambda root: (root / "meta/tasks.jsonl").write_text('{"task_index": 7, "task": "x"}'),
        "its task_index 0 is not in meta/tasks",
    ),
    "no video": (lambda root: video_file(root, 1).unlink(), "episode_000001.mp4 is missing"),
    "video pointer": (lambda root: video_file(root, 1).write_bytes(POINTER), "episode_000001.mp4 is a Git LFS pointer"),
    "cut video": (lambda root: cut(video_file(root, 1)), "episode_000001.mp4"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_episode_is_named_or_skipped(
    v21: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    root, out = Path(shutil.copytree(v21, tmp_path / "toy")), tmp_path / "x.zarr"
    damage, reason = DAMAGE[kind]
    damage(root)
    if kind != "no video":  # without skip=true, the camera is left out and not the episode
        assert run_v21(root, out) == 2
        told = capsys.readouterr().err.splitlines()[-1]
        assert reason in told and "skip=true" in told and "episode 1 of" in told or kind == "no task"
    assert run_v21(root, out, "skip=true") == (2 if kind == "no task" else 0)
    output = capsys.readouterr()
    if kind == "no task":
        assert "none of 3 episodes" in output.err and reason in output.err and not out.exists()
        return
    assert "skipped 1 episode:\n    episode 1: " in output.out and reason in output.out
    store = EpisodeStore.open(out)
    (skipped,) = store.provenance["skipped"]
    assert skipped["episode"] == 1 and reason in skipped["reason"] and str(tmp_path) not in skipped["reason"]
    kept = [np.random.default_rng(index).normal(size=(6, 2)) for index in (0, 2)]
    assert [episode.state.tolist() for episode in store] == [rows.tolist() for rows in kept]


class Bad:
    """Episodes of a store, some of which do not match their checksum."""

    def __init__(self, path: Path, episodes: list[Episode], bad: list[int]) -> None:
        self.path, self.episodes = store_of(path, episodes), episodes
        group = zarr.open_group(path, mode="r+", zarr_format=3)
        for index in bad:
            group["state"][5 * index, 0] = 99.0  # type: ignore[index]


def test_skipping_goes_on_where_it_was(
    make_episode: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Bad(tmp_path / "a.zarr", [make_episode(seed) for seed in range(6)], [0, 2, 3])
    out = tmp_path / "b.zarr"
    append, left = EpisodeStore.append, iter(range(1))

    def once(self: EpisodeStore, episode: Episode) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt
        append(self, episode)

    with monkeypatch.context() as patched:
        patched.setattr(EpisodeStore, "append", once)
        assert run(source.path, out, "skip=true") == 130
    assert [entry["episode"] for entry in EpisodeStore.open(out).provenance["skipped"]] == [0, 2, 3]
    assert run(source.path, out, "skip=true") == 0
    shown = capsys.readouterr().out
    assert "resuming after 4 episodes" in shown and "b.zarr: 2 episodes, 10 steps written" in shown
    assert "skipped 3 episodes:" in shown
    store = EpisodeStore.open(out)
    assert [episode.info["seed"] for episode in store] == [1, 4, 5]
    assert [entry["episode"] for entry in store.provenance["skipped"]] == [0, 2, 3]
    assert run(source.path, out, "skip=true") == 0
    assert "all 3 episodes are there already" in capsys.readouterr().out


def test_command_that_failed_goes_on_with_skip(
    make_episode: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = Bad(tmp_path / "a.zarr", [make_episode(seed) for seed in range(4)], [2])
    assert run(source.path, tmp_path / "b.zarr") == 2
    assert run(source.path, tmp_path / "b.zarr", "skip=true") == 0
    assert "resuming after 2 episodes" in capsys.readouterr().out
    assert [episode.info["seed"] for episode in EpisodeStore.open(tmp_path / "b.zarr")] == [0, 1, 3]


def test_range_and_skip_go_together(make_episode: Make, tmp_path: Path) -> None:
    source = Bad(tmp_path / "a.zarr", [make_episode(seed) for seed in range(6)], [0, 3])
    for _ in range(2):
        assert run(source.path, tmp_path / "b.zarr", "skip=true", "episodes=2:5") == 0
    store = EpisodeStore.open(tmp_path / "b.zarr")
    assert [episode.info["seed"] for episode in store] == [2, 4]
    assert [entry["episode"] for entry in store.provenance["skipped"]] == [3]


@pytest.mark.parametrize("to", ["b.zarr", "b"])
def test_nothing_is_written_where_nothing_can_be_read(
    make_episode: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str], to: str
) -> None:
    source = Bad(tmp_path / "a.zarr", [make_episode(seed) for seed in range(2)], [0, 1])
    assert run(source.path, tmp_path / to, "skip=true") == 2
    assert "none of 2 episodes of" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a.zarr"]


def test_lerobot_dataset_lacks_what_was_skipped(
    make_episode: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    infinite = make_episode(3, extras={"force": np.full(5, np.inf)})
    episodes = [make_episode(seed, extras={"force": np.ones(5)}) for seed in range(3)]
    source = Bad(tmp_path / "a.zarr", [*episodes, infinite], [0])
    assert run(source.path, tmp_path / "b", "skip=true", "use_videos=false") == 0
    assert "skipped 2 episodes:" in capsys.readouterr().out
    written = lerobot_v3.open_source(tmp_path / "b")
    assert [written[index].info["seed"] for index in range(len(written))] == [1, 2]
    side = json.loads((tmp_path / "b/meta/vla.json").read_text())
    assert [entry["episode"] for entry in side["provenance"]["skipped"]] == [0, 3]
