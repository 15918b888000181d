"""`vla convert`: whole, resumable, read back, and clear about what it cannot do."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import zarr
from conftest import write_store

from vla.commands import cli
from vla.datasets import format_registry as registry
from vla.datasets.episode_index import checksum
from vla.datasets.episodes import EpisodeStore
from vla.datasets.formats.compare import check_equal
from vla.embodiment import Embodiment
from vla.errors import InputError
from vla.types import Episode, Span

Make = Callable[..., Episode]


def run(*arguments: str | Path) -> None:
    assert cli.main(["convert", *map(str, arguments)]) == 0


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    capsys.readouterr()
    assert cli.main(["convert", *map(str, arguments)]) == 2
    return capsys.readouterr().err


def mixed(make_episode: Make) -> list[Episode]:
    """Episodes of which each lacks what another has."""
    rng = np.random.default_rng(0)
    points = rng.random((5, 2, 2))
    points[1, 0] = np.nan
    return [
        make_episode(0, extras={"next.reward": rng.random(5).astype(np.float32)}, paraphrases=("up",)),
        make_episode(1, horizon=3, points=points, spans=(Span(1, 3, "reach"),)),
        make_episode(2, depth={"front": rng.integers(0, 9999, (5, 4, 5)).astype(np.uint16)}),
        make_episode(
            3, time=np.cumsum(rng.random(5)), extras={"count": np.arange(5), "force": rng.normal(size=(5, 2))}
        ),
    ]


def store_of(path: Path, episodes: list[Episode], **options: Any) -> Path:
    write_store(path, episodes, **options)
    return path


def check_store(path: Path, episodes: list[Episode], worst: float = 0.0) -> EpisodeStore:
    store = EpisodeStore.open(path)
    assert len(store) == len(episodes)
    for index, episode in enumerate(episodes):
        assert check_equal(episode, store[index]) <= worst
    return store


class Failing:
    """A source whose episode `bad` cannot be read, until it is mended."""

    def __init__(self, episodes: list[Episode], bad: int | None = None) -> None:
        self.episodes, self.bad = episodes, bad
        self.read: list[int] = []

    @property
    def embodiment(self) -> Embodiment:
        return self.episodes[0].embodiment

    @property
    def provenance(self) -> Mapping[str, Any]:
        return {"format": "failing", "actions_stated": "by the test"}

    def __len__(self) -> int:
        return len(self.episodes)

    def __getitem__(self, index: int) -> Episode:
        self.read.append(index)
        if index == self.bad:
            raise OSError("the disk is gone")
        return self.episodes[index]


@pytest.fixture
def failing(make_episode: Make, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Failing:
    """Read by the format "failing"."""
    monkeypatch.chdir(tmp_path_factory.mktemp("sources"))
    Path("failing").touch()
    source = Failing([make_episode(seed) for seed in range(4)], bad=2)
    module = ModuleType("format_of_a_test")
    module.__dict__.update(detect=lambda path: path.name == "failing", open_source=lambda path: source)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(registry, "FORMATS", {"failing": module.__name__, **registry.FORMATS})
    return source


# There and back


def test_store_to_lerobot_and_back(make_episode: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    episodes = mixed(make_episode)
    command = (store_of(tmp_path / "a.zarr", episodes, provenance={"by": "us"}), tmp_path / "b", "use_videos=false")
    run(*command)
    shown = capsys.readouterr().out
    assert "4 episodes, 20 steps written" in shown and shown.endswith(f"\nvla view {tmp_path / 'b'}\n")
    run(*command)
    assert "all 4 episodes are there already" in capsys.readouterr().out
    for other in ("use_videos=true", "episodes=:2"):
        assert f"{tmp_path / 'b'} exists" in error_of(capsys, *command[:2], other)
    run(tmp_path / "b", tmp_path / "c.zarr")
    assert capsys.readouterr().out.endswith(f"\nvla data info {tmp_path / 'c.zarr'}\n")
    store = check_store(tmp_path / "c.zarr", episodes)
    assert store.provenance["origin"]["by"] == "us"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zarr", "b", "c.zarr"]


def test_writing_video_leaves_the_process_its_priority(make_episode: Make, tmp_path: Path) -> None:
    """The AV1 encoder, as root, gives its caller priority over every other process, for good."""
    images = {name: np.full((5, 64, 64, 3), 120, np.uint8) for name in ("front", "wrist")}
    run(store_of(tmp_path / "a.zarr", [make_episode(images=images)]), tmp_path / "b", "use_videos=true")
    assert list((tmp_path / "b").rglob("*.mp4"))
    assert sys.platform != "linux" or os.sched_getscheduler(0) == os.SCHED_OTHER


def test_codec_is_changed_and_a_part_is_taken(
    make_episode: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = {name: np.full((5, 16, 16, 3), [10, 120, 240], np.uint8) for name in ("front", "wrist")}
    episodes = [replace(episode, images=images) for episode in mixed(make_episode)]
    run(store_of(tmp_path / "a.zarr", episodes), tmp_path / "b.zarr", "codec=jpeg", "episodes=1:3")
    shown = capsys.readouterr().out
    assert "2 of 4 episodes of toy (vla)" in shown and "numbers equal, pixels within" in shown
    store = check_store(tmp_path / "b.zarr", episodes[1:3], worst=3.0)
    assert store.codec == "jpeg"
    assert store.provenance["conversion"]["episodes"] == [1, 3]


def test_old_schema_is_read(make_episode: Make, tmp_path: Path) -> None:
    episodes = [make_episode(0), make_episode(1, horizon=2, points=np.full((5, 1, 2), 0.5))]
    robot, old = episodes[0].embodiment, tmp_path / "old.zarr"
    attributes = {"format": "vla.episodes", "schema_version": 1, "embodiment": robot.to_dict()}
    group = zarr.create_group(old, attributes=attributes)
    rows = [{f"images/{name}": frames for name, frames in episode.images.items()} for episode in episodes]
    records = []
    for number, (arrays, episode) in enumerate(zip(rows, episodes, strict=True)):
        arrays |= {name: getattr(episode, name) for name in ("state", "action", "time")}
        arrays |= {name: getattr(episode, name) for name in ("points", "chunks") if number == 1}
        record = {"offset": 5 * number, "length": 5, "checksum": checksum(arrays.values()), "info": episode.info}
        record |= {"has_points": number == 1, "has_chunks": number == 1}
        records.append(json.dumps(record | {"instruction": episode.instruction, "success": episode.success}))
    for name, values in rows[1].items():
        first = rows[0][name] if name in rows[0] else np.full_like(values, np.nan)
        group.create_array(name, data=np.concatenate([first, values]))
    index = group.create_array("episodes", shape=(2,), chunks=(2,), dtype=str)
    index[:] = np.array(records, object)
    with pytest.raises(InputError, match="vla convert"):
        EpisodeStore.open(old)
    run(old, tmp_path / "new.zarr", "actions=absolute", "grippers=[]")
    check_store(tmp_path / "new.zarr", episodes)


def test_questions_are_imported(tmp_path: Path) -> None:
    from PIL import Image

    from vla.datasets.vqa import VqaStore

    (tmp_path / "images").mkdir()
    Image.new("RGB", (8, 8), "red").save(tmp_path / "images/a.png")
    turns = [{"from": "human", "value": "<image>\nwhat color is it?"}, {"from": "gpt", "value": "red"}]
    (tmp_path / "q.json").write_text(json.dumps([{"id": "1", "image": "a.png", "conversations": turns}]))
    run(tmp_path / "q.json", tmp_path / "q.zarr", f"images={tmp_path / 'images'}", "size=16")
    assert len(VqaStore(tmp_path / "q.zarr")) == 1


# Going on


def test_store_goes_on_after_the_episode_that_failed(
    failing: Failing, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ("failing", tmp_path / "x.zarr")
    assert "episode 2 of failing cannot be read (OSError: the disk is gone)" in error_of(capsys, *where)
    check_store(tmp_path / "x.zarr", failing.episodes[:2])
    failing.bad, failing.read = None, []
    run(*where)
    assert "resuming after 2 episodes" in capsys.readouterr().out
    # The last one is compared, none before it is read again.
    assert failing.read == [1, 2, 3]
    check_store(tmp_path / "x.zarr", failing.episodes)
    run(*where)
    assert "all 4 episodes are there already" in capsys.readouterr().out


def test_killed_conversion_goes_on(make_episode: Make, tmp_path: Path) -> None:
    episodes = [make_episode(seed) for seed in range(4)]
    arguments = ["convert", str(store_of(tmp_path / "a.zarr", episodes)), str(tmp_path / "b.zarr")]
    # Killed in the middle of the third episode, when some of its arrays are written.
    code = f"""
import os
from vla.commands import cli
from vla.datasets.store_arrays import StoreArrays
write = StoreArrays.write
def killed(self, names, *content):
    if self.count == 10:
        write(self, [name for name in names if name != "state"], *content)
        os.kill(os.getpid(), {int(signal.SIGKILL)})
    write(self, names, *content)
StoreArrays.write = killed
cli.main({arguments})
"""
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert process.returncode == -signal.SIGKILL, process.stderr
    check_store(tmp_path / "b.zarr", episodes[:2])
    assert cli.main(arguments) == 0
    check_store(tmp_path / "b.zarr", episodes)


@pytest.mark.parametrize("change", ["codec=lz4", "episodes=0:3"])
def test_store_of_another_conversion_is_refused(
    make_episode: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: str
) -> None:
    source = store_of(tmp_path / "a.zarr", mixed(make_episode))
    run(source, tmp_path / "b.zarr")
    key = change.partition("=")[0]
    assert f"not of this conversion (its {key} is" in error_of(capsys, source, tmp_path / "b.zarr", change)
    assert "not of this conversion (its source is None" in error_of(capsys, tmp_path / "b.zarr", source)


def test_source_that_changed_meanwhile_is_refused(
    failing: Failing, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error_of(capsys, "failing", tmp_path / "x.zarr")
    failing.episodes[1] = replace(failing.episodes[1], action=failing.episodes[1].action + 1)
    assert "was not begun from episode 1 of failing: action" in error_of(capsys, "failing", tmp_path / "x.zarr")


def test_failed_lerobot_dataset_leaves_nothing(
    failing: Failing, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ("failing", tmp_path / "out", "use_videos=false")
    assert "episode 2 of failing cannot be read" in error_of(capsys, *where)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / ".out.partial").mkdir()  # what a killed writer leaves
    failing.bad = None
    run(*where)
    assert "is restarted" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    run(*where)
    assert "all 4 episodes are there already" in capsys.readouterr().out


# Read back


def test_what_does_not_read_back_is_told(
    make_episode: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = store_of(tmp_path / "a.zarr", [make_episode(0), make_episode(1)])
    append = EpisodeStore.append

    def forgetful(self: EpisodeStore, episode: Episode) -> None:
        append(self, episode if len(self) == 0 else replace(episode, action=episode.action * 2))

    monkeypatch.setattr(EpisodeStore, "append", forgetful)
    assert "episode 1 of" in (told := error_of(capsys, source, tmp_path / "b.zarr")) and "action does not" in told


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("instruction", lambda episode: {"instruction": "other"}),
        ("success", lambda episode: {"success": not episode.success}),
        ("info", lambda episode: {"info": {"seed": 9}}),
        ("spans", lambda episode: {"spans": ()}),
        ("state", lambda episode: {"state": np.nextafter(episode.state, 9)}),
        ("chunks", lambda episode: {"chunks": None}),
        ("depth", lambda episode: {"depth": {}}),
        ("force", lambda episode: {"extras": {"force": episode.extras["force"].astype(np.float64)}}),
        ("images of front", lambda episode: {"images": {**episode.images, "front": episode.images["front"][:, 1:]}}),
    ],
)
def test_every_difference_is_found(make_episode: Make, field: str, change: Callable[[Episode], dict[str, Any]]) -> None:
    episode = make_episode(
        horizon=2,
        spans=(Span(0, 2, "a"),),
        depth={"front": np.zeros((5, 2, 2), np.uint16)},
        extras={"force": np.full(5, np.nan, np.float32)},
    )
    assert check_equal(episode, replace(episode, info=dict(episode.info))) == 0
    with pytest.raises(InputError, match=field):
        check_equal(episode, replace(episode, **change(episode)))


def test_pixel_error_is_the_mean_difference(make_episode: Make) -> None:
    episode = make_episode(images={name: np.zeros((5, 8, 10, 3), np.uint8) for name in ("front", "wrist")})
    off = replace(episode, images={**episode.images, "front": np.full((5, 8, 10, 3), 4, np.uint8)})
    assert check_equal(episode, off) == check_equal(off, episode) == 2.0


# What cannot be done


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["missing.zarr", "x.zarr"], "cannot read missing.zarr: nothing is there"),
        (["a.zarr", "x.zarr", "format=tape"], "there is no format 'tape'"),
        (["a.zarr", "x.zarr", "to=tape"], "to=tape: choose auto, vla or lerobot"),
        (["a.zarr", "x.zarr", "instruction=lift it, slowly"], "instruction is no option for vla sources"),
        (["a.zarr", "s3://id:key@bucket/x"], "a LeRobotDataset is written to a local folder"),
        (["a.zarr", "x.zarr", "fps=3"], "fps is no option for vla sources"),
        (["a.zarr", "x.zarr", "episodes=7:9"], "there is no episode"),
        (["a.zarr", "x.zarr", "codec=gif"], "gif"),
        (["empty", "x.zarr"], "it is in none of the formats vla"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(
    make_episode: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    told: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    store_of(tmp_path / "a.zarr", [make_episode()])
    (tmp_path / "empty").mkdir()
    assert told in error_of(capsys, *arguments)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zarr", "empty"]
