"""A disk that is full ends a command with one line; what was stored is whole, and the same command goes on."""

from __future__ import annotations

import errno
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vla.commands import cli
from vla.common.full_disk import explain_full_disk
from vla.datasets.episodes import EpisodeStore
from vla.datasets.formats.compare import check_equal
from vla.types import Episode

Make = Callable[..., Episode]


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file can grow beyond `size` bytes, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def episodes(make_episode: Make) -> list[Episode]:
    return [make_episode(seed, steps=20) for seed in range(6)]


@pytest.fixture
def source(episodes: list[Episode], tmp_path: Path) -> Path:
    with EpisodeStore.create(tmp_path / "a.zarr", episodes[0].embodiment) as store:
        for episode in episodes:
            store.append(episode)
    return tmp_path / "a.zarr"


def check_whole(path: Path, episodes: list[Episode]) -> None:
    store = EpisodeStore.open(path)
    assert len(store) == len(episodes)
    assert all(check_equal(episode, store[index]) == 0 for index, episode in enumerate(episodes))


def fails(capsys: pytest.CaptureFixture[str], size: int, *arguments: str) -> None:
    capsys.readouterr()
    with largest_file(size):
        assert cli.main(list(arguments)) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("vla ")]
    assert "File too large" in line and "free space" in line


def test_conversion_goes_on(
    source: Path, episodes: list[Episode], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "b.zarr"
    arguments = ["convert", str(source), str(out), "codec=raw"]
    fails(capsys, 12_000, *arguments)
    check_whole(out, episodes[: (done := len(EpisodeStore.open(out)))])
    assert 0 < done < 6 and not list(out.rglob("*.partial"))
    assert cli.main(arguments) == 0
    check_whole(out, episodes)


@pytest.mark.parametrize(
    ("size", "arguments"),
    [
        (100, ["convert", "a.zarr", "b.zarr"]),
        (12_000, ["data", "merge", "a.zarr", "a.zarr", "out=b.zarr"]),
        (12_000, ["data", "filter", "a.zarr", "out=b.zarr", "min_steps=1"]),
        (2_000, ["data", "split", "a.zarr", "out=b.zarr", "parts={x: 0.5, y: 0.5}"]),
    ],
)
def test_store_appears_whole_or_not_at_all(
    source: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    size: int,
    arguments: list[str],
) -> None:
    monkeypatch.chdir(source.parent)
    fails(capsys, size, *arguments)
    assert [path.name for path in source.parent.iterdir()] == ["a.zarr"]
    assert cli.main(arguments) == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["data", "delete", "a.zarr", "episodes=0"],
        ["data", "rename", "a.zarr", "cameras={front: top}"],
        ["data", "edit", "a.zarr", "episodes=0", "instruction=other words"],
        ["data", "info", "a.zarr", "html=page.html"],
    ],
)
def test_store_that_is_changed_stays_as_it_was(
    source: Path,
    episodes: list[Episode],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
) -> None:
    monkeypatch.chdir(source.parent)
    fails(capsys, 500, *arguments)
    check_whole(source, episodes)
    assert [path.name for path in source.parent.iterdir()] == ["a.zarr"]
    assert cli.main(arguments) == 0


def test_image_that_lerobot_cannot_write_is_named(
    make_episode: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """LeRobot only logs such an error, and the image stays truncated."""
    large = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    episode = make_episode(steps=3)
    episode = replace(episode, images=dict.fromkeys(episode.images, large))
    with EpisodeStore.create(tmp_path / "a.zarr", episode.embodiment) as store:
        store.append(episode)
    out = tmp_path / "b"
    arguments = ["convert", str(tmp_path / "a.zarr"), str(out), "use_videos=false"]
    fails(capsys, 11_000, *arguments)  # a PNG has 12,000 bytes, the other files have less
    assert not out.exists() and cli.main(arguments) == 0


def test_import_of_questions_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for index in range(4):
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(tmp_path / f"images/{index}.png")
    turns = '{"from": "human", "value": "<image> What?"}, {"from": "gpt", "value": "x"}'
    rows = [f'{{"id": "{i}", "image": "{i}.png", "conversations": [{turns}]}}' for i in range(4)]
    (tmp_path / "q.json").write_text(f"[{', '.join(rows)}]")
    arguments = ["convert", str(tmp_path / "q.json"), str(tmp_path / "q.zarr"), f"images={tmp_path / 'images'}"]
    capsys.readouterr()
    with largest_file(2_000):
        assert cli.main(arguments) == 2
    assert "free space" in capsys.readouterr().err
    assert cli.main(arguments) == 0


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "x.zarr"), "x.zarr cannot be written: No space left"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "a file cannot be written: I/O error"),
        (OSError("4096 requested and 1024 written"), "4096 requested"),
        (OSError(errno.ENOENT, "No such file", "file too large.txt"), ""),
        (KeyError("x"), ""),
    ],
)
def test_errors_of_a_full_disk_are_told_from_others(error: Exception, told: str) -> None:
    assert told in explain_full_disk(error) and bool(told) == bool(explain_full_disk(error))
    try:
        raise ValueError("something else") from error
    except ValueError as outer:
        assert explain_full_disk(outer) == explain_full_disk(error)
