"""`vla convert workers=N`: the same store, to the bit, whole and resumable."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import zarr
from test_hdf5 import demonstration, write_robomimic

from vla.commands import cli
from vla.datasets.conversion import parallel
from vla.datasets.episodes import EpisodeStore
from vla.datasets.formats import hdf5
from vla.types import Episode, Span

Make = Callable[..., Episode]


def run(*arguments: str | Path) -> int:
    return cli.main(["convert", *map(str, arguments)])


def files(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


@pytest.fixture
def source(make_episode: Make, tmp_path: Path) -> Path:
    """Eight episodes, of which each lacks what another has; those of numbers 0, 3 and 4 are damaged."""
    episodes = [make_episode(seed, steps=4 + seed) for seed in range(8)]
    with EpisodeStore.create(tmp_path / "a.zarr", episodes[0].embodiment) as store:
        for seed, episode in enumerate(episodes):
            steps = len(episode)
            fields: dict[str, object] = {
                "extras": {f"force{seed % 3}": np.full((steps, 2), seed, np.float32)},
                "success": (None, True, False)[seed % 3],
                "spans": (Span(0, 2, "reach"),) if seed % 2 else (),
                "points": np.full((steps, 2, 2), 0.1 * seed) if seed > 4 else None,
            }
            store.append(make_episode(seed, steps=steps, **fields))
        offsets = [store.records[index].offset for index in (0, 3, 4)]
    group = zarr.open_group(tmp_path / "a.zarr", mode="r+", zarr_format=3)
    for offset in offsets:
        group["state"][offset, 0] = 99.0  # type: ignore[index]
    return tmp_path / "a.zarr"


class InThisProcess:
    map = staticmethod(map)


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts are converted as by others, which take seconds to start."""

    @contextmanager
    def pool(workers: int) -> Iterator[InThisProcess]:
        yield InThisProcess()

    parallel._selection.cache_clear()
    monkeypatch.setattr(parallel, "_pool", pool)


def test_result_is_that_of_one_process(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("skip=true", "episodes=0:7", "codec=lz4")
    assert run(source, tmp_path / "one.zarr", *options) == 0
    first = capsys.readouterr().out.splitlines()[1:]
    assert run(source, tmp_path / "two.zarr", *options, "workers=2") == 0
    second = capsys.readouterr().out.splitlines()[1:]
    assert files(tmp_path / "one.zarr") == files(tmp_path / "two.zarr")
    assert [line.replace("two", "one").split(" written")[0] for line in second] == [
        line.split(" written")[0] for line in first
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zarr", "one.zarr", "two.zarr"]
    assert run(source, tmp_path / "two.zarr", *options, "workers=2") == 0
    assert "all 4 episodes are there already" in capsys.readouterr().out
    assert files(tmp_path / "one.zarr") == files(tmp_path / "two.zarr")


@pytest.mark.parametrize("workers", [1, 2])
def test_what_failed_is_named_and_goes_on(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], in_this_process: None, workers: int
) -> None:
    out = tmp_path / "x.zarr"
    assert run(source, out, "episodes=1:", "workers=2") == 2
    assert "episode 3 of" in (told := capsys.readouterr().err) and "skip=true" in told
    assert parallel.parts_folder(str(out)).is_dir()
    assert run(source, out, "episodes=1:", "skip=true", f"workers={workers}") == 0
    assert [episode.info["seed"] for episode in EpisodeStore.open(out)] == [1, 2, 5, 6, 7]
    assert not parallel.parts_folder(str(out)).exists()


def test_hdf5_files_are_checked_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], in_this_process: None
) -> None:
    folder = tmp_path / "demos"
    folder.mkdir()
    for name in "ab":
        write_robomimic(folder / f"{name}.hdf5", {f"demo_{seed}": demonstration(seed, 4) for seed in range(2)})
    checks: list[Sequence[Path]] = []

    def unreadable(files: Sequence[Path]) -> dict[Path, str]:
        checks.append(files)
        return {folder / "b.hdf5": "libhdf5 hangs"}

    monkeypatch.setattr(hdf5, "find_unreadable", unreadable)
    assert run(folder, tmp_path / "x.zarr", "skip=true", "fps=20", "actions=delta", "workers=2") == 0
    assert checks == [[folder / "a.hdf5", folder / "b.hdf5"]]
    assert "episode 2: libhdf5 hangs" in capsys.readouterr().out
    assert len(EpisodeStore.open(tmp_path / "x.zarr")) == 2


def test_conversion_that_one_process_began_is_gone_on_with(source: Path, tmp_path: Path, in_this_process: None) -> None:
    assert run(source, tmp_path / "x.zarr", "episodes=1:") == 2
    assert len(EpisodeStore.open(tmp_path / "x.zarr")) == 2
    assert run(source, tmp_path / "x.zarr", "episodes=1:", "skip=true", "workers=2") == 0
    assert run(source, tmp_path / "y.zarr", "episodes=1:", "skip=true") == 0
    assert files(tmp_path / "x.zarr") == files(tmp_path / "y.zarr")


def test_conversion_that_was_cut_off_while_parts_were_put_together_goes_on(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_this_process: None
) -> None:
    copy, left = parallel.StoreTarget.copy, iter(range(3))

    def cut(self: parallel.StoreTarget, part: EpisodeStore, index: int) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt
        copy(self, part, index)

    monkeypatch.setattr(parallel, "MOST_PARTS", 3)
    with monkeypatch.context() as patched:
        patched.setattr(parallel.StoreTarget, "copy", cut)
        assert run(source, tmp_path / "x.zarr", "skip=true", "workers=2") == 130
    assert len(EpisodeStore.open(tmp_path / "x.zarr")) == 3
    assert run(source, tmp_path / "x.zarr", "skip=true", "workers=2") == 0
    assert run(source, tmp_path / "y.zarr", "skip=true") == 0
    assert files(tmp_path / "x.zarr") == files(tmp_path / "y.zarr")


def test_error_of_another_process_is_one_line(source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(source, source.parent / "x.zarr", "episodes=3:5", "workers=2") == 2
    assert "episode 3 of" in capsys.readouterr().err.splitlines()[-1]


def test_nothing_is_left_where_nothing_can_be_read(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], in_this_process: None
) -> None:
    assert run(source, tmp_path / "x.zarr", "episodes=3:5", "skip=true", "workers=2") == 2
    assert "none of 2 episodes" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["a.zarr"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["x.zarr", "workers=0"], "must be 1 or more"),
        (["x", "workers=2"], "workers is no option for a LeRobotDataset"),
        (["s3://bucket/x.zarr", "workers=2"], "needs a local DST"),
    ],
)
def test_workers_that_cannot_be_are_refused(
    source: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    assert run(source, *arguments) == 2
    assert told in capsys.readouterr().err


def test_parts_of_several_machines_are_merged(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["-m", "a.zarr", "dst=part-${episodes}.zarr", "episodes=0:4,4:8", "skip=true"]
    assert cli.main(["convert", *arguments]) == 0
    assert cli.main(["data", "merge", "part-0:4.zarr", "part-4:8.zarr", "out=all.zarr"]) == 0
    assert [episode.info["seed"] for episode in EpisodeStore.open("all.zarr")] == [1, 2, 5, 6, 7]
