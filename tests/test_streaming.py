"""Episodes whose images are written while they are recorded: what is stored, what memory holds, what a crash leaves."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from crc32c import crc32c
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stores import assert_equal, cut_before
from test_full_disk import largest_file

from vla.datasets import frame_stream, shards
from vla.datasets.codecs import CODECS
from vla.datasets.crc import Digest, crc_followed_by
from vla.datasets.episodes import EpisodeStore
from vla.errors import InputError
from vla.recording.replay import drive
from vla.recording.zarr_recorder import ZarrRecorder
from vla.types import Episode, Observation

Make = Callable[..., Episode]


@pytest.fixture
def store(tmp_path: Path, make_episode: Make) -> Iterator[EpisodeStore]:
    with EpisodeStore.create(tmp_path / "a.zarr", make_episode().embodiment, "raw") as store:
        yield store


@contextmanager
def small_shards(frames: int) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for module in (shards, frame_stream):
            patch.setattr(module, "FRAMES_PER_SHARD", frames)
        yield


def observation(episode: Episode, step: int) -> Observation:
    images = {camera: frames[step] for camera, frames in episode.images.items()}
    return Observation(images, episode.state[step], episode.instruction, float(episode.time[step]))


def begin(store: EpisodeStore, episode: Episode) -> ZarrRecorder:
    """A recorder in the middle of the episode: all its steps are there."""
    recorder = ZarrRecorder(store)
    recorder.start(episode.instruction, **episode.info)
    for step in range(len(episode)):
        recorder.step(observation(episode, step), episode.action[step])
    return recorder


def files(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def staged(path: Path) -> list[Path]:
    return list(path.rglob("*.partial"))


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    codec=st.sampled_from(sorted(CODECS)),
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    sizes=st.lists(st.tuples(st.integers(1, 17), st.integers(1, 17)), min_size=1, max_size=3),
    points=st.integers(0, 2),
    horizon=st.none() | st.integers(1, 3),
    seed=st.integers(0, 2**32 - 1),
)
def test_streamed_is_stored_to_the_byte_as_one_that_is_appended_whole(
    codec: str,
    lengths: list[int],
    sizes: list[tuple[int, int]],
    points: int,
    horizon: int | None,
    seed: int,
    make_episode: Make,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    rng, folder = np.random.default_rng(seed), tmp_path_factory.mktemp("stores")
    robot = replace(make_episode().embodiment, cameras=tuple(f"camera {i}" for i in range(len(sizes))))
    episodes = [
        make_episode(
            number,
            length,
            horizon,
            embodiment=robot,
            images={
                camera: rng.integers(0, 256, (length, *size, 3), np.uint8)
                for camera, size in zip(robot.cameras, sizes, strict=True)
            },
            points=rng.random((length, points * len(sizes), 2)) if points else None,
        )
        for number, length in enumerate(lengths)
    ]
    with small_shards(4):
        with (
            EpisodeStore.create(folder / "whole", robot, codec) as whole,
            EpisodeStore.create(folder / "streamed", robot, codec) as streamed,
        ):
            recorder = ZarrRecorder(streamed)
            for episode in episodes:
                whole.append(episode)
                drive(recorder, episode)
        assert files(folder / "streamed") == files(folder / "whole")
        for again, episode in zip(EpisodeStore.open(folder / "streamed"), episodes, strict=True):
            assert_equal(again, episode) if CODECS[codec].lossless else assert_equal(
                again, replace(episode, images=again.images)
            )


def test_an_episode_without_steps_is_refused_and_leaves_nothing(store: EpisodeStore, make_episode: Make) -> None:
    before = files(store.folder.path)
    recorder = begin(store, make_episode(steps=0))
    with pytest.raises(InputError, match="without steps"):
        recorder.finish(True)
    assert files(store.folder.path) == before and not staged(store.folder.path)


@pytest.mark.parametrize("first", [0, 6])
def test_recorders_side_by_side_store_in_the_order_in_which_they_finish(
    first: int, store: EpisodeStore, make_episode: Make
) -> None:
    """Their episodes cannot all begin where the store ended when they did."""
    episodes = [make_episode(seed, steps=seed + 2) for seed in range(4)]
    with small_shards(4):
        if first:
            store.append(make_episode(9, steps=first))
        recorders = [begin(store, episode) for episode in episodes]
        for number in (2, 0, 3, 1):
            recorders[number].finish(episodes[number].success)
        found = list(EpisodeStore.open(store.path))[bool(first) :]
        for stored, number in zip(found, (2, 0, 3, 1), strict=True):
            assert_equal(stored, episodes[number])
    assert not staged(store.folder.path)


def test_an_image_of_another_size_drops_the_episode_at_that_step(store: EpisodeStore, make_episode: Make) -> None:
    small = make_episode(images={camera: np.zeros((5, 4, 4, 3), np.uint8) for camera in ("front", "wrist")})
    recorder = begin(store, make_episode())
    with pytest.raises(InputError, match=r"step 5: image of camera 'front' is uint8 \(4, 4, 3\), expected"):
        recorder.step(observation(small, 0), small.action[0])
    assert not staged(store.folder.path)
    store.append(make_episode())
    recorder.start("of another size than the store's")
    with pytest.raises(InputError, match="step 0: image of camera 'front'"):
        recorder.step(observation(small, 0), small.action[0])
    assert len(store) == 1


@pytest.mark.parametrize("codec", sorted(CODECS))
def test_memory_holds_no_images(codec: str, tmp_path: Path, make_episode: Make) -> None:
    """Neither as they came nor coded; the smallest of these would be 0.5 MB."""
    robot, rng = make_episode().embodiment, np.random.default_rng(0)
    with EpisodeStore.create(tmp_path / "b.zarr", robot, codec) as store:
        recorder = ZarrRecorder(store)
        recorder.start("lift the ring")
        held: list[int] = []
        tracemalloc.start()
        try:
            for step in range(260):
                images = {camera: rng.integers(0, 256, (48, 40, 3), np.uint8) for camera in robot.cameras}
                recorder.step(Observation(images, np.zeros(2), "lift the ring", step / 10), np.zeros(3))
                held.append(tracemalloc.get_traced_memory()[0])
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert held[-1] - held[9] < 40_000 and peak - held[9] < 100_000
        recorder.finish(True)
        assert store[0].images["wrist"].shape == (260, 48, 40, 3)


def test_abort_and_a_forgotten_recorder_leave_nothing(store: EpisodeStore, make_episode: Make) -> None:
    store.append(make_episode())
    before = files(store.folder.path)
    recorder = begin(store, make_episode(1, steps=20))
    assert staged(store.folder.path)
    recorder.abort()
    assert files(store.folder.path) == before and not staged(store.folder.path)
    recorder = begin(store, make_episode(1, steps=20))
    recorder.start("another in its place")
    assert len(staged(store.folder.path)) == 1
    del recorder
    assert files(store.folder.path) == before and not staged(store.folder.path)


KILLED = """
import os, signal, sys
import numpy as np
from vla.datasets.episodes import EpisodeStore
from vla.recording.zarr_recorder import ZarrRecorder
from vla.types import Observation

store = EpisodeStore.open(sys.argv[1], "a")
recorder = ZarrRecorder(store)
recorder.start("cut off")
for step in range(300):
    images = {camera: np.zeros((8, 10, 3), np.uint8) for camera in store.embodiment.cameras}
    recorder.step(Observation(images, np.zeros(2), "cut off", step / 10), np.zeros(3))
print("recording", flush=True)
sys.stdin.readline()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_kill_in_mid_episode_leaves_the_store_whole(store: EpisodeStore, make_episode: Make) -> None:
    store.append(make_episode())
    store.close()
    path, before = store.folder.path, files(store.folder.path)
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdout is not None and writer.stdout.readline() == b"recording\n"
        assert_equal(EpisodeStore.open(path)[0], make_episode())  # others read meanwhile
        live = staged(path)
        with pytest.raises(InputError, match="another process is writing"):
            EpisodeStore.open(path, "a")
        assert len(live) == 1 and staged(path) == live and len(files(path)) > len(before) + 2
        writer.communicate(b"die\n")
    assert writer.returncode == -signal.SIGKILL
    found = EpisodeStore.open(path)
    assert len(found) == 1 and not found.unfinished_frames
    assert_equal(found[0], make_episode())
    with EpisodeStore.open(path, "a") as again:
        assert files(path) == before and not staged(path)
        drive(ZarrRecorder(again), make_episode(1))
        assert_equal(again[1], make_episode(1))


def test_a_kill_while_it_finishes_loses_that_episode_alone(
    store: EpisodeStore, make_episode: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = store.folder.path
    store.append(make_episode())
    for count in range(30):
        recorder = begin(store, make_episode(1))
        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", cut_before(count))
            try:
                recorder.finish(True)
            except BaseException as error:
                assert type(error).__name__ == "Killed"
        store.close()
        with EpisodeStore.open(path, "a") as store:
            assert_equal(store[0], make_episode())
            if len(store) == 2:
                assert_equal(store[1], replace(make_episode(1), success=True))
                return
            store.trim()
        store = EpisodeStore.open(path, "a")
    pytest.fail("the episode was never stored")


def test_a_full_disk_drops_the_episode_and_frees_what_it_took(store: EpisodeStore, make_episode: Make) -> None:
    store.append(make_episode())
    before = files(store.folder.path)
    with largest_file(20_000), pytest.raises(OSError, match=r"images/front") as raised:
        begin(store, make_episode(1, steps=200))
    assert raised.value.errno == errno.EFBIG
    assert files(store.folder.path) == before and not staged(store.folder.path)
    drive(ZarrRecorder(store), make_episode(1, steps=200))
    assert_equal(store[1], make_episode(1, steps=200))


def test_a_disk_that_is_full_at_the_end_leaves_no_frames(store: EpisodeStore, make_episode: Make) -> None:
    """The numbers are written before the images, which are in files already, take their place."""
    store.append(make_episode())
    images = {name: held for name, held in files(store.folder.path).items() if name.startswith("images/")}
    recorder = begin(store, make_episode(1, steps=9))
    with largest_file(1_000), pytest.raises(OSError):
        recorder.finish(True)
    after = files(store.folder.path)
    assert all(after[name] == held for name, held in images.items() if "/c/" in name) and not staged(store.folder.path)
    assert len(EpisodeStore.open(store.path)) == 1


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_does_not_remove_what_the_other_writes(store: EpisodeStore, make_episode: Make) -> None:
    recorder = begin(store, make_episode())
    images = recorder._unfinished.images  # type: ignore[union-attr]
    if (child := os.fork()) == 0:
        images.abort()
        os._exit(0)
    os.waitpid(child, 0)
    recorder.finish(False)
    assert_equal(store[0], make_episode())


@given(st.binary(max_size=200), st.binary(max_size=200))
def test_crc_of_bytes_that_follow(first: bytes, second: bytes) -> None:
    following = Digest(crc32c(second), len(second))
    assert crc_followed_by(crc32c(first), following) == crc32c(first + second)
