"""Recording beside the control loop where the disk is full, or too slow: it ends, with a word, and not the run."""

from __future__ import annotations

import errno
import json
import logging
import threading
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vla.commands import cli
from vla.control.loop import Tick
from vla.control.recording import BEHIND, Recording
from vla.datasets.episodes import EpisodeStore
from vla.datasets.frame_stream import FrameStream
from vla.errors import InputError
from vla.types import Observation

FULL = OSError(errno.ENOSPC, "No space left on device", "a.zarr/images/front")


class Noted:
    """A recorder that notes what it is given. A step does `at` of its number."""

    def __init__(self, at: Callable[[int], object] = lambda number: None) -> None:
        self.at, self.steps = at, 0
        self.calls: list[str] = []

    def start(self, instruction: str, **info: object) -> None:
        self.calls.append("start")

    def step(self, observation: Observation, action: np.ndarray, **info: object) -> None:
        self.at(self.steps)
        self.steps += 1

    def finish(self, success: bool | None) -> None:
        self.calls.append("finish")

    def abort(self) -> None:
        self.calls.append("abort")


def tick(time: float, seen: bool = True) -> Tick:
    observation = Observation({"front": np.zeros((4, 4, 3), np.uint8)}, np.zeros(2), "pick", time) if seen else None
    return Tick(time, time, np.zeros(2), observation, None, np.zeros(2), (), "chunk", None, None, 0.0)


def fail_at(number: int, error: Exception) -> Callable[[int], None]:
    def at(now: int) -> None:
        if now == number:
            raise error

    return at


def test_a_full_disk_ends_that_recorder_with_one_line(caplog: pytest.LogCaptureFixture) -> None:
    full, other = Noted(fail_at(3, FULL)), Noted()
    recording = Recording([full, other], 2, required=False)
    recording.start("pick")
    for number in range(10):
        recording(tick(number / 10))
    recording.finish(True)
    reason = "Noted: a.zarr/images/front cannot be written: No space left on device: free space"
    assert len(recording.failed) == 1 and recording.failed[0].startswith(reason)
    assert [(r.name, r.levelno) for r in caplog.records] == [("vla.control.recording", logging.WARNING)]
    assert caplog.records[0].getMessage() == f"not recorded: {recording.failed[0]}"
    assert full.steps == 3 and full.calls == ["start", "abort"]
    assert other.steps == 9 and other.calls == ["start", "finish"] and len(recording.trace.time) == 10


def test_a_fault_that_nobody_thought_of_is_told_too() -> None:
    recording = Recording([Noted(fail_at(0, ZeroDivisionError("by zero")))], 2, required=False)
    recording.start("pick")
    for number in range(3):
        recording(tick(number / 10))
    recording.finish(True)
    assert recording.failed == ["Noted: by zero"]


def test_what_is_required_ends_the_run() -> None:
    recording = Recording([Noted(fail_at(0, FULL))], 2)
    recording.start("pick")
    with pytest.raises(InputError, match=r"the episode is not stored: Noted: .* free space"):
        while True:
            recording(tick(0.0))
    recording.finish(True)


def test_a_recorder_that_cannot_begin_is_told_before_anything_moves() -> None:
    full = Noted()
    full.start = lambda *_, **__: fail_at(0, FULL)(0)  # type: ignore[method-assign]
    with pytest.raises(OSError, match="No space left"):
        Recording([full], 2, required=False).start("pick")


def test_a_recorder_that_is_too_slow_ends_before_the_episode_has_holes() -> None:
    """It hangs in its third step. Images that wait are bounded, and none that came later is held."""
    hangs, go_on = threading.Event(), threading.Event()

    def hang(number: int) -> None:
        if number == 2:
            hangs.set()
            go_on.wait()

    slow, other = Noted(hang), Noted()
    recording = Recording([slow, other], 2, required=False)
    recording.start("pick")
    for number in range(4):
        recording(tick(number / 30))
    hangs.wait()
    images = []
    for number in range(4, 600):
        made = tick(number / 30)
        assert made.observation is not None
        images.append(weakref.ref(made.observation.images["front"]))
        recording(made)
        del made
    held = sum(image() is not None for image in images)
    go_on.set()
    recording.finish(True)
    assert 30 * BEHIND - 5 <= held <= 30 * BEHIND + 5
    first, second = recording.failed
    assert first.startswith("recording fell 5 s behind the cameras, and ended after 3 steps: ") and "codec=" in first
    assert second == "596 observations were dropped"
    assert slow.calls == other.calls == ["start", "abort"] and slow.steps == other.steps == 3
    assert len(recording.trace.time) == 600 and not any(image() is not None for image in images)


def test_a_process_that_was_stopped_for_a_while_is_not_behind() -> None:
    slow = Noted()
    recording = Recording([slow], 2)
    recording.start("pick")
    for time in (0.0, 0.1, 60.0, 60.1, 60.2):
        recording(tick(time))
    recording.finish(True)
    assert recording.failed == [] and slow.steps == 4


def test_of_a_long_run_the_end_is_traced_joint_by_joint() -> None:
    recording = Recording([], 2)
    recording.start("pick")
    for number in range(600):
        made = tick(number / 10, seen=False)
        recording(replace(made, state=np.full(2, number), infer=0.1 if number % 100 == 0 else None))
    recording.finish(None)
    trace = recording.trace
    assert len(trace.time) == len(trace.late) == 600
    np.testing.assert_allclose(trace.recent, np.arange(399, 600) / 10)
    np.testing.assert_array_equal(trace.state[:, 1], np.arange(399, 600))
    assert trace.sent.shape == (201, 2) and list(trace.answers) == [40.0, 50.0]


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """No more than so many frames have room."""

    def fill(frames: int) -> None:
        add, left = FrameStream.add, iter(range(frames))

        def add_or_fail(stream: FrameStream, coded: bytes) -> None:
            if next(left, None) is None:
                raise FULL
            add(stream, coded)

        monkeypatch.setattr(FrameStream, "add", add_or_fail)

    return fill


def test_a_full_disk_does_not_end_a_deployment(
    full_disk: Callable[[int], None],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    full_disk(5)
    assert cli.main(["deploy", "policy=hold", "seconds=1.0", f"out={tmp_path / 'out'}"]) == 0
    told = json.loads((tmp_path / "out" / "deploy.json").read_text())
    assert told["reason"] == "done" and told["steps"] > 4
    assert [line for line in caplog.messages if "not recorded: ZarrRecorder" in line and "free space" in line]
    assert "not recorded: ZarrRecorder: a.zarr/images/front cannot be written" in capfd.readouterr().out
    store = EpisodeStore.open(tmp_path / "out" / "episodes.zarr")
    assert len(store) == 0 and not store.unfinished_frames and not list(tmp_path.rglob("*.partial"))


def test_a_rerun_file_that_cannot_be_written_does_not_end_a_deployment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("File-writer thread shut down prematurely")

    monkeypatch.setattr("rerun.RecordingStream.flush", broken)
    assert cli.main(["deploy", "policy=hold", "seconds=0.5", f"out={tmp_path / 'out'}"]) == 0
    assert "not recorded: episode.rrd: a file cannot be written" in capsys.readouterr().out
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["deploy.json", "episodes.zarr", "report.html"]
    assert len(EpisodeStore.open(tmp_path / "out" / "episodes.zarr")) == 1


def test_a_full_disk_ends_a_session_and_the_episodes_before_stay(
    full_disk: Callable[[int], None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("script.txt").write_text("x+ x+ x+ save " + "y+ " * 200)
    command = ["record", "robot=sim", "out=by-hand.zarr", "pause=0", "teleop=script", "script=script.txt", "episodes=2"]
    full_disk(14)
    assert cli.main(command) == 2
    told = capsys.readouterr()
    assert told.err.count("\n") == 1 and "the episode is not stored" in told.err and "free space" in told.err
    assert "1 new episodes, 1 in all" in told.out
    store = EpisodeStore.open("by-hand.zarr")
    assert len(store) == 1 and store[0].success and not list(tmp_path.rglob("*.partial"))
