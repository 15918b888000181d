"""Which format a path is in, which names go to the hub, and what is said where there is nothing."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vla.commands import cli
from vla.datasets.episodes import EpisodeStore
from vla.datasets.format_registry import find_format, open_episodes
from vla.datasets.formats import lerobot_v3
from vla.datasets.formats.lerobot_v3_writer import LeRobotWriter
from vla.errors import InputError
from vla.types import Episode

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 123\n"


@pytest.mark.parametrize(
    "name", ["user/set", "user/set_1.0.0_lerobot", "my.lab/set.v2", "lerobot/svla_so101_pickplace"]
)
def test_name_of_the_hub_goes_there(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name.partition("/")[0]).mkdir()  # a folder of the user's name is no reason against it
    assert find_format(name, "auto") == "lerobot"
    with pytest.raises(InputError, match=f"{name} is not a local folder, and the hub could not be reached"):
        open_episodes(name)


@pytest.mark.parametrize(
    "path",
    ["./foo/bar", "../foo/bar", "/foo/bar", "~/foo", "foo", "a/b/c", "foo/", "foo/.bar"]
    + [f"data/foo{suffix}" for suffix in (".zarr", ".hdf5", ".h5", ".json", ".JSONL", ".parquet", ".zip", ".tfrecord")],
)
def test_path_where_nothing_is_does_not_go_to_the_hub(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="cannot read .*: nothing is there$"):
        find_format(path, "auto")


def test_name_that_is_nearly_there_is_offered(tmp_path: Path) -> None:
    (tmp_path / "pick.zarr").mkdir()
    with pytest.raises(InputError, match=r"nothing is there \(is it .*/pick\.zarr\?\)"):
        find_format(str(tmp_path / "pik.zarr"), "auto")


def test_pointer_of_git_lfs_is_named_whatever_it_should_be(tmp_path: Path) -> None:
    for name in ("x.hdf5", "x.zip", "x.tar", "x.parquet", "x.json"):
        (tmp_path / name).write_text(POINTER)
        with pytest.raises(InputError, match=f"{name} is a Git LFS pointer.*git lfs pull"):
            find_format(str(tmp_path / name), "auto")


@pytest.mark.parametrize("content", ["{", POINTER, "[]"])
def test_metadata_that_are_broken_are_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta/info.json").write_text(content)
    with pytest.raises(InputError, match=r"meta/info\.json (is broken JSON at line 1|is a Git LFS|holds a list)"):
        find_format(str(tmp_path), "auto")


def test_name_on_the_hub_is_looked_up_by_lerobot(
    make_episode: Callable[..., Episode], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lerobot.datasets import dataset_metadata
    from lerobot.utils import constants

    for module in (constants, dataset_metadata):
        monkeypatch.setattr(module, "HF_LEROBOT_HOME", tmp_path)
    episode = make_episode()
    writer = LeRobotWriter(tmp_path / "user/set_1.0.0", episode.embodiment, {}, use_videos=False)
    writer.append(episode)
    writer.finish()
    writer.publish()
    source = open_episodes("user/set_1.0.0")
    assert np.array_equal(source[0].action, episode.action)


def test_path_of_no_name_is_told() -> None:
    with pytest.raises(InputError, match="no LeRobot dataset at a/b/c"):
        lerobot_v3.open_source(Path("a/b/c"))


def test_what_a_format_does_not_expect_is_an_error_of_the_input(tmp_path: Path) -> None:
    """Whatever a reader raises over a damaged file, the user gets one line."""
    (tmp_path / "dataset_info.json").write_text(json.dumps({"name": "bridge", "splits": 3}))
    (tmp_path / "features.json").write_text("{}")
    with pytest.raises(InputError, match=r"features\.json"):
        open_episodes(str(tmp_path))


# Where a store is wanted


def commands(path: Path) -> list[list[str]]:
    return [
        ["data", "info", str(path)],
        ["data", "check", str(path)],
        ["data", "filter", str(path), "out=x", "success=true"],
        ["data", "merge", str(path), str(path), "out=x"],
        ["train-tokenizer", f"data={path}", "out=x"],
    ]


def test_commands_for_stores_name_the_conversion(
    make_episode: Callable[..., Episode], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    episode = make_episode()
    folder = tmp_path / "my data"
    writer = LeRobotWriter(folder, episode.embodiment, {}, use_videos=False)
    writer.append(episode)
    writer.finish()
    writer.publish()
    for arguments in commands(folder):
        assert cli.main(arguments) == 2
        command = capsys.readouterr().err.split("`")[1]
        assert command == f"vla convert '{folder}' 'outputs/my data.zarr'"
    assert cli.main(["convert", *shlex.split(command)[2:3], str(tmp_path / "x.zarr")]) == 0


def test_store_of_pointers_is_named(make_episode: Callable[..., Episode], tmp_path: Path) -> None:
    with EpisodeStore.create(tmp_path / "x.zarr", make_episode().embodiment) as store:
        store.append(make_episode())
    for name in ("state/c/0/0", "images/front/c/0/0/0/0"):
        (tmp_path / "x.zarr" / name).write_text(POINTER)
        with pytest.raises(InputError, match=f"{name} is a Git LFS pointer"):
            EpisodeStore.open(tmp_path / "x.zarr")[0]
