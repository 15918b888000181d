"""The episode store: exact, crash-safe, one writer, clear about damage, readable by stock zarr."""

from __future__ import annotations

import json
import multiprocessing
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from conftest import write_store
from hypothesis import given, settings
from hypothesis import strategies as st
from stores import Killed, assert_equal, cut_before

from vla.common.statistics import Statistics
from vla.datasets.episodes import EpisodeStore
from vla.datasets.shards import FRAMES_PER_SHARD
from vla.errors import InputError
from vla.types import Episode

Make = Callable[..., Episode]


@pytest.fixture
def episodes(make_episode: Make) -> list[Episode]:
    """Three episodes; the second has points, and chunks with steps where no chunk was in force."""
    chunks = np.random.default_rng(9).normal(size=(7, 4, 3))
    chunks[2:4] = np.nan
    points = np.random.default_rng(8).uniform(size=(7, 2, 2))
    return [make_episode(0), make_episode(1, steps=7, chunks=chunks, points=points), make_episode(2, steps=1)]


@pytest.fixture
def path(tmp_path: Path, episodes: list[Episode]) -> Path:
    write_store(tmp_path / "store", episodes)
    return tmp_path / "store"


def test_round_trip_is_exact(path: Path, episodes: list[Episode]) -> None:
    store = EpisodeStore.open(path)
    assert len(store) == 3
    for stored, episode in zip(store, episodes, strict=True):
        assert_equal(stored, episode)
    assert_equal(store[-1], episodes[-1])
    with pytest.raises(IndexError, match="there is no episode 3: the store has 3"):
        store[3]


def test_appending_while_open_and_after_reopening(path: Path, episodes: list[Episode], make_episode: Make) -> None:
    more = [make_episode(10 + i, steps=FRAMES_PER_SHARD // 2 + i) for i in range(4)]
    more[0] = make_episode(10, steps=3, images={name: np.zeros((3, 8, 10, 3), np.uint8) for name in more[0].images})
    # Views that are not contiguous.
    more[1] = replace(more[1], images={name: frames[:, ::-1, :, ::-1] for name, frames in more[1].images.items()})
    with EpisodeStore.open(path, "a") as store:
        for i, episode in enumerate(more):
            store.append(episode)
            assert_equal(store[len(episodes) + i], episode)
            assert_equal(store[0], episodes[0])
    for stored, episode in zip(EpisodeStore.open(path), [*episodes, *more], strict=True):
        assert_equal(stored, episode)


@settings(max_examples=3)
@given(lengths=st.lists(st.integers(1, FRAMES_PER_SHARD + 20), min_size=1, max_size=4), data=st.data())
def test_any_frame_is_where_it_belongs(
    tmp_path_factory: pytest.TempPathFactory, make_episode: Make, lengths: list[int], data: st.DataObject
) -> None:
    episodes = [make_episode(i, steps=n) for i, n in enumerate(lengths)]
    store = write_store(tmp_path_factory.mktemp("frames") / "store", episodes)
    frames = np.concatenate([episode.images["wrist"] for episode in episodes])
    indices = data.draw(st.lists(st.integers(0, len(frames) - 1), max_size=20))
    np.testing.assert_array_equal(store.frames("wrist", indices), frames[indices])


def test_stock_zarr_reads_everything(path: Path, episodes: list[Episode]) -> None:
    group = zarr.open_group(path, mode="r")
    members = dict(group.members(max_depth=None))
    streams = {"images", "images/front", "images/wrist", "state", "action", "time", "points", "chunks"}
    assert set(members) == streams | {"layout", "episodes"}

    def read(name: str) -> Any:
        return members[name][:]

    for camera in ("front", "wrist"):
        expected = np.concatenate([episode.images[camera] for episode in episodes])
        np.testing.assert_array_equal(read(f"images/{camera}"), expected)
    for name in ("state", "action", "time"):
        np.testing.assert_array_equal(read(name), np.concatenate([getattr(episode, name) for episode in episodes]))
    for name in ("points", "chunks"):
        assert np.isnan(read(name)[:5]).all() and np.isnan(read(name)[-1]).all()
    assert read("layout")[:, 0].tolist() == [5, 12, 13]
    sets: Any = group.attrs["stream_sets"]
    assert [sets[number] for number in read("layout")[:, 1]] == [[], ["points", "chunks"], []]
    records = [json.loads(str(text)) for text in read("episodes")]
    assert [(r["offset"], r["length"], r["instruction"]) for r in records] == [
        (0, 5, "lift the ring"),
        (5, 7, "lift the ring"),
        (12, 1, "lift the ring"),
    ]
    assert group.attrs["embodiment"] == json.loads(json.dumps(episodes[0].embodiment.to_dict()))


def test_summary_and_statistics(path: Path, episodes: list[Episode]) -> None:
    store = EpisodeStore.open(path)
    summary = store.summary
    assert (summary.episodes, summary.frames, summary.successes, summary.seconds) == (3, 13, 1, 1.3)
    assert summary.instructions == {"lift the ring": 3}
    assert summary.images == {"front": (8, 10), "wrist": (8, 10)}
    expected = Statistics.of(np.concatenate([episodes[0].action, episodes[2].action]))
    assert store.statistics([0, 2])["action"].hash() == expected.hash()
    assert store.statistics()["state"].count == 13


def test_statistics_name_a_nan(path: Path) -> None:
    group = zarr.open_group(path, mode="r+")
    group["action"][8, 2] = np.nan  # type: ignore[index]
    with pytest.raises(InputError, match=r"action of episode 1 .*step 3: grip \[rad\] is not finite"):
        EpisodeStore.open(path).statistics()


RECORD_UNTIL_KILLED = """
import sys
import numpy as np
from vla.datasets.episodes import EpisodeStore
from vla.types import Episode

store = EpisodeStore.open(sys.argv[1], "a")
first = store[0]
for seed in range(10**6):
    rng = np.random.default_rng(seed)
    steps = 40
    images = {c: rng.integers(0, 256, (steps, 8, 10, 3), np.uint8) for c in store.embodiment.cameras}
    store.append(Episode(images, rng.normal(size=(steps, 2)), rng.normal(size=(steps, 3)), np.arange(steps) / 10,
                         "lift the ring", store.embodiment, True, {"seed": seed}, rng.normal(size=(steps, 4, 3))))
    print(len(store), flush=True)
"""


@pytest.mark.parametrize("appends", [1, 3, 8])
def test_kill_loses_no_finished_episode(path: Path, episodes: list[Episode], make_episode: Make, appends: int) -> None:
    """SIGKILL comes wherever the writer then is in its next append."""
    with subprocess.Popen([sys.executable, "-c", RECORD_UNTIL_KILLED, str(path)], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        announced = [int(writer.stdout.readline()) for _ in range(appends)]
        writer.send_signal(signal.SIGKILL)
        announced += [int(line) for line in writer.stdout.read().split()]
    with EpisodeStore.open(path, "a") as store:
        assert announced[-1] <= len(store) <= announced[-1] + 1
        for stored, episode in zip(store, episodes, strict=False):
            assert_equal(stored, episode)
        assert [e.info["seed"] for e in store][3:] == list(range(len(store) - 3))
        more = make_episode(5, steps=50)
        store.append(more)
    assert_equal(EpisodeStore.open(path)[-1], more)


def test_readers_see_whole_episodes_while_one_records(path: Path, episodes: list[Episode]) -> None:
    command = [sys.executable, "-c", RECORD_UNTIL_KILLED, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        early = EpisodeStore.open(path)
        for _ in range(6):
            count = int(writer.stdout.readline())
            store = EpisodeStore.open(path)
            assert len(store) >= count
            assert [e.info["seed"] for e in store][3:] == list(range(len(store) - 3))
        writer.send_signal(signal.SIGKILL)
    for stored, episode in zip(early, episodes, strict=True):
        assert_equal(stored, episode)


def test_a_store_that_another_replaced_is_noticed(path: Path, tmp_path: Path, make_episode: Make) -> None:
    store = EpisodeStore.open(path)
    with EpisodeStore.create(tmp_path / "new", make_episode().embodiment) as new:
        new.append(make_episode(8, steps=20))
    path.rename(tmp_path / "old")
    (tmp_path / "new").rename(path)
    with pytest.raises(InputError, match="was replaced while it was open"):
        store[0]


@pytest.mark.parametrize("first", [True, False])
def test_every_cut_in_an_append_leaves_the_store_whole(
    tmp_path: Path, make_episode: Make, monkeypatch: pytest.MonkeyPatch, first: bool
) -> None:
    """The append is cut before its 1st, 2nd, ... file rename, until one gets through."""
    kept = [] if first else [make_episode(1, horizon=4)]
    cuts = 0
    while True:
        path = tmp_path / str(cuts)
        with EpisodeStore.create(path, make_episode().embodiment) as store:
            for episode in kept:
                store.append(episode)
            with monkeypatch.context() as patch:
                patch.setattr(Path, "replace", cut_before(cuts))
                try:
                    store.append(make_episode(2, steps=6, horizon=4))
                    break
                except Killed:
                    cuts += 1
        with EpisodeStore.open(path, "a") as store:
            assert len(store) == len(kept)
            # What the killed one left, of another shape even, is in nobody's way.
            size = (8, 10) if kept else (4, 4)
            images = {camera: np.full((3, *size, 3), 7, np.uint8) for camera in store.embodiment.cameras}
            after = make_episode(3, steps=3, images=images)
            store.append(after)
        for stored, episode in zip(EpisodeStore.open(path), [*kept, after], strict=True):
            assert_equal(stored, episode)
    assert cuts > 8


def test_one_writer(path: Path) -> None:
    with EpisodeStore.open(path, "a"):
        with pytest.raises(InputError, match="another process is writing to"):
            EpisodeStore.open(path, "a")
        code = f"from vla.datasets.episodes import EpisodeStore; EpisodeStore.open({str(path)!r}, 'a')"
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert other.returncode != 0 and "another process is writing to" in other.stderr
        assert len(EpisodeStore.open(path)) == 3
    EpisodeStore.open(path, "a").close()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_process_reads_and_holds_no_lock(path: Path, make_episode: Make) -> None:
    context = multiprocessing.get_context("fork")
    with EpisodeStore.open(path, "a") as store:
        store.append(make_episode(3, steps=64))
    expected = store.frames("front", np.arange(64))  # by the pool's threads, which a child does not have
    answers, go_on = context.Queue(), context.Event()

    def child() -> None:
        answers.put(store.frames("front", np.arange(64)))
        go_on.wait(60)
        writer.close()

    with EpisodeStore.open(path, "a") as writer:
        process = context.Process(target=child)
        process.start()
        np.testing.assert_array_equal(answers.get(timeout=60), expected)
    again = EpisodeStore.open(path, "a")
    go_on.set()
    process.join()
    with pytest.raises(InputError, match="another process is writing"):
        EpisodeStore.open(path, "a")
    again.close()


def test_a_store_to_read_is_not_written(path: Path, make_episode: Make) -> None:
    store = EpisodeStore.open(path)
    with pytest.raises(InputError, match="mode 'a'"):
        store.append(make_episode())


def test_create_takes_no_place_that_is_taken(path: Path, tmp_path: Path, make_episode: Make) -> None:
    with pytest.raises(InputError, match="exists"):
        EpisodeStore.create(path, make_episode().embodiment)
    assert len(EpisodeStore.open(path)) == 3
    assert [p.name for p in tmp_path.iterdir()] == ["store"]
    with pytest.raises(InputError, match="would lie inside the store"):
        EpisodeStore.create(path / "deep" / "inner", make_episode().embodiment)
    assert not (path / "deep").exists()


def test_an_empty_store(tmp_path: Path, make_episode: Make) -> None:
    EpisodeStore.create(tmp_path / "a" / "b", make_episode().embodiment).close()
    store = EpisodeStore.open(tmp_path / "a" / "b")
    assert len(store) == 0 and list(store) == [] and store.summary.frames == 0
    with pytest.raises(InputError, match="no episodes"):
        store.statistics()


def test_missing_and_foreign_stores(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no episode store at"):
        EpisodeStore.open(tmp_path / "none")
    with pytest.raises(InputError, match="has no zarr.json"):
        EpisodeStore.open(tmp_path)
    zarr.create_group(tmp_path / "other")
    with pytest.raises(InputError, match="not an episode store"):
        EpisodeStore.open(tmp_path / "other")


@pytest.mark.parametrize(
    "name", ["zarr.json", "state/zarr.json", "episodes/zarr.json", "episodes/c/0", "images/wrist/zarr.json"]
)
@pytest.mark.parametrize("content", [b"", b"{", b"\xff\x00" * 50], ids=["empty", "cut", "random"])
def test_a_damaged_file_is_named(path: Path, name: str, content: bytes) -> None:
    (path / name).write_bytes(content)
    with pytest.raises(InputError, match=str(path / Path(name).parts[0])):
        EpisodeStore.open(path)


def test_a_newer_schema_is_refused(path: Path) -> None:
    zarr.open_group(path, mode="r+").attrs["schema_version"] = 99
    with pytest.raises(InputError, match="schema version 99"):
        EpisodeStore.open(path)


def test_a_removed_array_is_noticed(path: Path) -> None:
    (path / "action" / "zarr.json").unlink()
    with pytest.raises(InputError, match="action"):
        EpisodeStore.open(path)


@pytest.mark.parametrize("damage", ["truncate", "remove", "index", "frame"])
def test_a_damaged_shard_is_named(path: Path, damage: str) -> None:
    shard = path / "images" / "wrist" / "c" / "0" / "0" / "0" / "0"
    content = bytearray(shard.read_bytes())
    if damage == "remove":
        shard.unlink()
    else:
        content[{"index": -10, "frame": 30, "truncate": 0}[damage]] ^= 1
        shard.write_bytes(content[: -len(content) // 2] if damage == "truncate" else content)
    store = EpisodeStore.open(path)
    with pytest.raises(InputError, match=str(shard)):
        store[0]


def test_a_changed_value_fails_the_checksum(path: Path) -> None:
    group = zarr.open_group(path, mode="r+")
    group["state"][6, 0] += 1e-9  # type: ignore[index, operator]
    store = EpisodeStore.open(path)
    store[0]
    with pytest.raises(InputError, match="episode 1 of .* checksum"):
        store[1]


def bad_episodes(make: Make) -> dict[str, Episode]:
    good = make()
    nan = good.action.copy()
    nan[3, 1] = np.nan
    other = replace(good.embodiment, action=("lift [rad]", "spin [rad]", "grip [rad]"))
    return {
        r"action, step 3: turn \[rad\] is not finite": replace(good, action=nan),
        "state, step 0": replace(good, state=np.full((5, 2), np.inf)),
        "time, step 0": replace(good, time=np.full(5, np.nan)),
        r"spin \[rad\]": replace(good, embodiment=other),
        "no images of camera 'wrist'": replace(good, images={"front": good.images["front"]}),
        r"camera 'front' are uint8 \(5, 4, 4, 3\)": make(
            images={c: np.zeros((5, 4, 4, 3), np.uint8) for c in good.images}
        ),
        "chunks are": make(horizon=5),
        "cannot divide 3 points": make(points=np.zeros((5, 3, 2))),
        "without steps": make(steps=0),
        "JSON": make(info={"policy": object()}),
    }


@pytest.mark.parametrize("message", range(10))
def test_a_bad_episode_is_refused_before_anything_is_written(path: Path, make_episode: Make, message: int) -> None:
    words, episode = list(bad_episodes(make_episode).items())[message]
    before = {file: file.stat().st_mtime_ns for file in path.rglob("*") if file.is_file()}
    with EpisodeStore.open(path, "a") as store, pytest.raises(InputError, match=words):
        store.append(episode)
    assert {file: file.stat().st_mtime_ns for file in path.rglob("*") if file.is_file()} == before


def test_many_shards_do_not_use_up_the_file_descriptors(
    tmp_path: Path, make_episode: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vla.datasets.shards.MAX_OPEN_SHARDS", 2)
    episode = make_episode(steps=4 * FRAMES_PER_SHARD)
    with EpisodeStore.create(tmp_path / "store", episode.embodiment) as store:
        store.append(episode)
    for index in (0, 300, 600, 1000, 5, 700):
        for camera, images in episode.images.items():
            np.testing.assert_array_equal(store.frames(camera, [index])[0], images[index])
        np.testing.assert_array_equal(store.state[index], episode.state[index])
    assert 1 <= Path("/proc/self/maps").read_text().count(str(tmp_path / "store")) <= 2


def test_frames_out_of_range_and_unknown_camera(path: Path) -> None:
    store = EpisodeStore.open(path)
    for index in (-1, 13):
        with pytest.raises(IndexError):
            store.frames("front", [index])
    with pytest.raises(InputError, match="no camera 'top'"):
        store.frames("top", [0])
