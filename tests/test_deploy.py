"""A policy in a process of its own, on the simulated arm in wall-clock time, written down."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rerun.experimental import RrdReader
from scripted_policy import Scripted, unloadable
from so101_checkpoints import so101_model

from vla.commands import cli
from vla.control.inference import Answer, Inference, InferenceDied, Request, check_execution
from vla.control.process_inference import ProcessInference
from vla.control.recording import Recording
from vla.control.thread_inference import ThreadInference, answer
from vla.control.tick import Tick
from vla.datasets.episodes import EpisodeStore
from vla.envs.make import make_env
from vla.errors import InputError
from vla.models.vla import VLA
from vla.robots.sim import SimRobot
from vla.types import ActionChunk, Observation, RTCPrefix


def request(instruction: str, shade: int = 7, size: int = 4, prefix: np.ndarray | None = None) -> Request:
    image = np.full((size, size, 3), shade, np.uint8)
    return Request(Observation({"front": image}, np.zeros(2), instruction, 1.5), RTCPrefix.of(prefix), 3)


def wait(inference: Inference) -> Answer:
    while (said := inference.answer()) is None:
        pass
    return said


@pytest.mark.parametrize("make", [partial(ProcessInference, Scripted), lambda: ThreadInference(Scripted())])
def test_a_policy_elsewhere_says_what_it_would_here(make: Callable[[], Inference]) -> None:
    inference = make()
    try:
        for shade, size in ((7, 4), (9, 64), (3, 8)):
            asked = request("pick it up", shade, size, np.array([[0.1, 0.2]]))
            inference.submit(asked)
            said = wait(inference)
            assert said.chunk is not None and said.chunk.actions.tolist() == [[0.1, 0.2], [shade, 0.0]]
            assert said.request is asked and said.answered >= said.requested and not inference.busy
        for instruction, reason in (
            ("silent", "no valid chunk"),
            ("wrong", "no such object"),
            ("broken", "ZeroDivisionError: division by zero"),
        ):
            inference.submit(request(instruction))
            said = wait(inference)
            assert said.chunk is None and said.reason == reason
        assert inference.answer() is None
    finally:
        inference.close()


def test_a_flow_is_guided_by_the_leftover_of_the_previous_chunk() -> None:
    class Guided(Scripted):
        guides = True

        def predict_batch(self, observations: Any, *, prefix: Any) -> list[ActionChunk | None]:
            (rows,) = np.concatenate([prefix.committed, 10 * prefix.leftover], axis=1)
            return [ActionChunk(rows, observations[0].time, 0.1 if prefix.guidance_mode == "vjp" else 0.2)]

    check_execution(Guided(), "guided-vjp")
    prefix = RTCPrefix(np.array([[0.1, 0.2]]), np.array([[0.3, 0.4]]), "vjp")
    answered = answer(Guided(), replace(request("pick it up"), prefix=prefix), 0.0)
    assert answered.chunk is not None and answered.chunk.dt == 0.1
    np.testing.assert_allclose(answered.chunk.actions, [[0.1, 0.2], [3.0, 4.0]])


def test_of_requests_that_wait_the_latest_is_answered() -> None:
    inference = ProcessInference(Scripted)
    try:
        for words in ("one", "one two", "one two three"):
            inference.submit(request(words))
        first, second = wait(inference), wait(inference)
        assert [said.request.observation.instruction for said in (first, second)] == ["one", "one two three"]
    finally:
        inference.close()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere threads have no niceness of their own")
def test_all_threads_of_the_policy_are_nicer_than_the_loop() -> None:
    inference = ProcessInference(Scripted)
    try:
        (process,) = [child for child in active_children() if child.name == "policy"]
        threads = [int(thread.name) for thread in Path(f"/proc/{process.pid}/task").iterdir()]
        own = os.getpriority(os.PRIO_PROCESS, 0)
        assert threads and all(os.getpriority(os.PRIO_PROCESS, thread) == min(own + 10, 19) for thread in threads)
    finally:
        inference.close()


def test_the_death_of_the_process_is_told() -> None:
    inference = ProcessInference(Scripted)
    inference.submit(request("die"))
    with pytest.raises(InferenceDied, match="has ended"):
        wait(inference)
    inference.close()
    with pytest.raises(InputError, match="no policy 'x'"):
        ProcessInference(unloadable)


class Failing:
    def start(self, instruction: str, **info: object) -> None:
        """Fine so far."""

    def step(self, observation: Observation, action: np.ndarray, **info: object) -> None:
        raise OSError("no space left on device")

    def finish(self, success: bool) -> None:
        raise AssertionError

    abort = start


class LayerKV:
    def __init__(self) -> None:
        self.steps: list[tuple[float, float]] = []
        self.ended: bool | None = None

    def start(self, instruction: str, **info: object) -> None:
        self.instruction = instruction

    def step(self, observation: Observation, action: np.ndarray, **info: object) -> None:
        self.steps.append((observation.time, float(action[0])))

    def finish(self, success: bool) -> None:
        self.ended = success

    def abort(self) -> None:
        self.ended = None


def test_a_step_is_what_was_seen_and_what_was_told_by_the_next() -> None:
    kept = LayerKV()
    recording = Recording([Failing(), kept], 2, required=False)  # type: ignore[list-item]
    recording.start("pick", seed=1)
    for index in range(10):
        time = index / 10
        seen = Observation({}, np.zeros(2), "pick", time) if index % 3 == 2 else None
        sent = None if index == 5 else np.array([float(index), 0.0])
        recording(Tick(time, time, np.zeros(2), seen, sent, sent, (), "chunk", None, None, 0.001, 1))
    recording.finish(True)
    assert kept.steps == [(0.2, 4.0), (0.5, 8.0)] and kept.ended is True
    (reason,) = recording.failed
    assert reason.startswith("Failing: a file cannot be written: no space left on device")
    assert len(recording.trace.time) == 10 and np.isnan(recording.trace.sent[5]).all()


def test_the_simulated_arm_keeps_the_clocks_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("vla.robots.sim.time.monotonic", lambda: now)
    robot = SimRobot(task="pick", seed=3, velocity=3.0, acceleration=30.0)
    with robot:
        start, measured = robot.state()
        assert measured == now
        robot.command(start + 0.1)
        for _ in range(50):
            now += 0.02
            state, _ = robot.state()
        np.testing.assert_allclose(state[:5], start[:5] + 0.1, atol=0.03)
        simulated = robot._env.time
        now += 10.0  # a gap is not made up for
        robot.state()
        assert robot._env.time - simulated == pytest.approx(0.2, abs=0.006)
        seen = robot.observe("pick up the cube")
        assert set(seen.images) == set(robot.embodiment.cameras) and not robot.success
    with pytest.raises(InputError, match="on the table"):
        SimRobot(task="metaworld/reach-v3", seed=0, velocity=1.0, acceleration=1.0)


def test_driving_is_judged_as_steps_are(monkeypatch: pytest.MonkeyPatch) -> None:
    env = make_env("pick", images=False).unwrapped
    for met in (True, False):
        env.reset(seed=0)
        monkeypatch.setattr(type(env.task), "done", lambda *_, met=met: met)
        held = env.scene.data.qpos[: env.scene.joints].copy()
        judged = [env.drive(held, 0.05) for _ in range(6)]
        assert judged == [False] * 5 + [met]  # three steps of a tenth of a second
    env.close()


@pytest.fixture
def folder(tmp_path: Path, make_model: Callable[..., VLA]) -> Path:
    so101_model(make_model(robot=False)).save_pretrained(tmp_path / "policy")
    return tmp_path


def test_a_deployment_leaves_its_numbers_its_page_and_its_episode(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command = ["deploy", f"policy={folder / 'policy'}", "seconds=1.5", f"out={folder / 'out'}", "robot.seed=5"]
    assert cli.main(command) == 0, capfd.readouterr()
    told = json.loads((folder / "out" / "deploy.json").read_text())
    assert told["reason"] == "done" and told["ticks"] > 20 and told["chunks"] + told["invalid"] > 0
    assert "Commanded and measured" in (folder / "out" / "report.html").read_text()
    chunks = [chunk for chunk in RrdReader(folder / "out" / "episode.rrd").stream() if not chunk.is_static]
    # Each costs memory until the end.
    assert max(Counter(chunk.entity_path for chunk in chunks).values()) == 1
    shown = {chunk.entity_path: chunk.num_rows for chunk in chunks}
    with EpisodeStore.open(folder / "out" / "episodes.zarr") as store:
        (episode,) = list(store)
        assert len(episode) == told["steps"] and episode.instruction == told["instruction"]
        assert (np.diff(episode.time) > 0.05).all()
        assert all(shown[f"/cameras/{camera}"] == len(episode) for camera in episode.images)
    assert "commands a second" in capfd.readouterr().out


def test_a_dry_run_tells_the_arm_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    told: list[np.ndarray] = []
    monkeypatch.setattr(SimRobot, "command", lambda self, action: told.append(action))
    command = ["deploy", "policy=hold", "seconds=0.5", f"out={tmp_path / 'out'}", "dry_run=true"]
    assert cli.main(command) == 0 and told == []
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["deploy.json", "report.html"]
    assert "does not move to the start of the demonstrations" in capfd.readouterr().out


def test_the_episode_is_optional_and_its_images_are_coded_as_chosen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["deploy", "policy=hold", "seconds=0.4", f"out={out}"]
    assert cli.main([*command, "record=false"]) == 0
    assert "vla view" not in capsys.readouterr().out
    assert sorted(path.name for path in out.iterdir()) == ["deploy.json", "episode.rrd", "report.html"]
    assert cli.main([*command, "codec=jpeg"]) == 0 and cli.main(command) == 0
    with EpisodeStore.open(out / "episodes.zarr") as store:
        assert store.codec == "jpeg" and len(store) == 2
    assert cli.main([*command, "codec=raw"]) == 2
    assert "has images as jpeg, not raw" in capsys.readouterr().err
    assert len(EpisodeStore.open(out / "episodes.zarr")) == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["policy=expert"], "deploy a checkpoint"),
        (["policy=hold", "codec=jpg"], "no codec 'jpg'"),
        (["policy=hold", "codec=jpeg", "record=false"], "record=false"),
        (["policy=hold", "dry_run=true", "loop.end=home"], "loop.end=home moves the arm"),
        (["policy=nowhere"], "no policy 'nowhere'"),
        (["policy=hold", "loop.hz=25"], "multiple"),
        (["policy=hold", "loop.execution=slow"], "naive, chunked"),
        (["policy=hold", "loop.execution=guided"], "needs a flow head"),
        (["policy=hold", "seconds=0"], "above 0"),
        (["policy=hold", "robot=so101", "robot.port=/dev/null"], "set the instruction"),
        (["policy=hold", "robot=walker"], "robot"),
    ],
)
def test_mistakes_are_said_before_anything_moves(
    options: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["deploy", *options, f"out={tmp_path / 'out'}"]) == 2
    assert said in capsys.readouterr().err
