"""Past frames at run time: in the control loop, in processes, in environments, and on a server with several clients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from control_fakes import FakeRobot, VirtualClock, VirtualInference, follow_wave
from hypothesis import given
from hypothesis import strategies as st
from scripted_policy import Remembering
from serving import ROBOT, Mark, PlainClient, message, served
from toy_env import ToyEnv

from vla.control.config import LoopConfig
from vla.control.inference import Inference, Request
from vla.control.loop import ControlLoop
from vla.control.process_inference import ProcessInference
from vla.control.stop import EmergencyStop
from vla.control.thread_inference import ThreadInference
from vla.evaluation.rollouts.rollout import run_trials
from vla.evaluation.rollouts.trial import Trial
from vla.policies.history import FrameHistory, history_of
from vla.policies.remote import RemotePolicy
from vla.types import ActionChunk, Observation


def at(time: float, shade: int) -> Observation:
    return Observation({"front": np.full((4, 4, 3), shade, np.uint8)}, np.zeros(2), "go", time)


def shades(observation: Observation) -> list[int]:
    """Of the past images, -1 where there is none."""
    return [int(images["front"].mean()) if images else -1 for images in observation.past]


def test_the_newest_frame_that_is_old_enough_is_shown() -> None:
    frames = FrameHistory((0.5, 0.2), 0.1)
    seen = [shades(frames.with_past_frames(at(3.0 + i / 10, i))) for i in range(9)]
    assert seen[:6] == [[-1, -1], [-1, -1], [-1, 0], [-1, 1], [-1, 2], [0, 3]] and seen[8] == [3, 6]
    # Some observations were missed: what is older is shown, and never what is younger.
    assert shades(frames.with_past_frames(at(4.3, 13))) == [8, 8]
    assert shades(frames.with_past_frames(at(4.349, 14))) == [8, 8]
    # Up to half a step younger.
    assert shades(frames.with_past_frames(at(4.46, 15))) == [8, 13]
    frames.reset()
    assert shades(frames.with_past_frames(at(4.6, 16))) == [-1, -1]
    # A clock that begins again is another episode.
    assert shades(frames.with_past_frames(at(9.0, 17))) == [16, 16]
    assert shades(frames.with_past_frames(at(0.0, 18))) == [-1, -1]


def test_images_are_kept_as_they_were() -> None:
    frames, image = FrameHistory((0.1,), 0.1), np.zeros((2, 2, 3), np.uint8)
    frames.with_past_frames(Observation({"front": image}, np.zeros(1), "go", 0.0))
    image[:] = 9
    assert shades(frames.with_past_frames(at(0.1, 1))) == [0]


@given(st.lists(st.floats(0.0, 0.4), max_size=200))
def test_no_more_is_kept_than_is_asked_for(pauses: list[float]) -> None:
    frames = FrameHistory((1.0, 0.3), 0.1)
    for time in np.cumsum([0.0, *pauses]):
        found = frames.with_past_frames(at(float(time), 0))
        assert len(found.past) == 2
        # Every quarter of a step, and one that is older than all.
        assert len(frames._frames) <= 1.0 / 0.025 + 3


@pytest.mark.parametrize("hz", [10.0, 50.0])
def test_the_loop_shows_what_it_saw(hz: float) -> None:
    clock = VirtualClock()

    class Filming(FakeRobot):
        """Its images tell the step of their capture."""

        def observe(self, instruction: str) -> Observation:
            seen = super().observe(instruction)
            step = round((seen.time - 100) * 10)
            return replace(seen, images={"front": np.full((2, 2, 3), step, np.uint8)})

    for history in ((0.5, 0.2), ()):
        inference = VirtualInference(clock, follow_wave, lambda: 0.15)
        inference.history = history
        clock.time = 100.0
        ControlLoop(Filming(clock), inference, LoopConfig(hz=hz), clock, stop=EmergencyStop()).run("wave", 4.0)
        assert len(inference.requests) > 4
        for request in inference.requests:
            now = int(request.observation.images["front"].mean())
            before = [now - 5, now - 2] if history else []
            first = int(inference.requests[0].observation.images["front"].mean())
            assert shades(request.observation) == [step if step >= first else -1 for step in before]


@pytest.mark.parametrize("make", [partial(ProcessInference, Remembering), lambda: ThreadInference(Remembering())])
def test_past_images_reach_a_policy_elsewhere(make: Callable[[], Inference]) -> None:
    inference = make()
    try:
        assert inference.history == (0.5, 0.2)
        frames = FrameHistory(inference.history, 0.1)
        for i, expected in enumerate(([-1, -1, 0], [-1, -1, 1], [-1, 0, 2], [-1, 1, 3], [-1, 2, 4], [0, 3, 5])):
            inference.submit(Request(frames.with_past_frames(at(i / 10, i)), None, i))
            while (said := inference.answer()) is None:
                pass
            assert said.chunk is not None and said.chunk.actions.tolist() == [expected]
            assert len(said.request.observation.past) == 2
    finally:
        inference.close()


class Filmed(ToyEnv):
    """Images tell the environment and the step; they are drawn when they are asked for."""

    draws = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        found = super().reset(seed=seed, options=options)
        self.end = 8 + self.number % 3
        return self._observe(), found[1]

    def _observe(self) -> dict[str, Any]:
        return {key: value for key, value in super()._observe().items() if key != "images"}

    def capture(self) -> dict[str, Any]:
        return {"front": np.full((4, 4, 3), 20 * (self.number % 10) + len(self.actions), np.uint8)}


def test_each_environment_has_frames_of_its_own() -> None:
    seen: list[tuple[int, int, list[int]]] = []

    class Watching(Remembering):
        def predict(self, observation: Observation, *, prefix: Any = None) -> ActionChunk | None:
            shade = int(observation.images["front"].mean())
            seen.append((shade // 20, shade % 20, shades(observation)))
            rows = np.tile(observation.state.astype(np.float64), (3, 1))
            return ActionChunk(rows, observation.time, 0.1)

    policy = Watching(ToyEnv().embodiment)
    trials = [Trial(seed) for seed in range(5)]
    results = list(
        run_trials(
            lambda **_: Filmed(), lambda _: policy, iter(trials), parallel=2, n_action_steps=3, every_frame=False
        )
    )
    assert len(results) == 5 and not any(result.crash for result in results)
    assert {number for number, *_ in seen} == set(range(5))
    for number, step, past in seen:
        assert past == [20 * number + step - k if step >= k else -1 for k in (5, 2)]
    assert max(step for _, step, _ in seen) >= 6


def frames_sent(shade: int, time: float, **more: Any) -> dict[str, Any]:
    return message(shade) | {"vla/time": time} | more


class Serving(Remembering):
    def predict(self, observation: Observation, *, prefix: Any = None) -> ActionChunk | None:
        said = [float(images["top"].mean()) if images else -1.0 for images in (*observation.past, observation.images)]
        return ActionChunk(np.array([said[:2], [said[2], 0.0]]), observation.time, 0.1)


def test_a_server_keeps_the_frames_of_each_client() -> None:
    with served(Serving(ROBOT)) as url, PlainClient(url) as one, PlainClient(url) as other:
        assert one.metadata["history"] == [0.5, 0.2] and {"vla/past", "vla/reset"} <= set(one.metadata["extras"])
        said = []
        for i in range(6):
            mine = one.infer(frames_sent(i, i / 10))["actions"]
            theirs = other.infer(frames_sent(100 + i, 50 + i / 5))["actions"]
            said.append((mine[0].tolist(), theirs[0].tolist()))
        assert [mine for mine, _ in said] == [[-1, -1], [-1, -1], [-1, 0], [-1, 1], [-1, 2], [0, 3]]
        # Twice as slow: what is 0.6 s old is the newest that is 0.5 s old.
        assert [theirs for _, theirs in said] == [[-1, -1], [-1, 100], [-1, 101], [100, 102], [101, 103], [102, 104]]
        assert one.infer(frames_sent(9, 0.6, **{"vla/reset": True}))["actions"][0].tolist() == [-1, -1]
        # What a client sends itself goes first.
        past = [{"top": np.full((4, 6, 3), 77, np.uint8)}, {}]
        assert one.infer(frames_sent(10, 0.7, **{"vla/past": past}))["actions"].tolist() == [[77, -1], [10, 0]]
        # It is kept too, for what comes without any; and an episode that begins forgets it.
        assert one.infer(frames_sent(11, 0.9))["actions"][0].tolist() == [-1, 10]
        one.infer(frames_sent(12, 1.0, **{"vla/past": past, "vla/reset": True}))
        assert one.infer(frames_sent(13, 1.2))["actions"][0].tolist() == [-1, 12]
        with pytest.raises(RuntimeError, match="vla/past: this policy takes a list of 2 maps"):
            one.infer(frames_sent(11, 0.8, **{"vla/past": past[:1]}))
        for more in ({}, {"vla/past": past}):
            with pytest.raises(RuntimeError, match="vla/reset is true or false"), PlainClient(url) as robot:
                robot.infer(frames_sent(11, 60.0, **{"vla/reset": 1}, **more))


def test_a_remote_policy_is_shown_what_the_loop_saw() -> None:
    with served(Serving(ROBOT)) as url:
        remote = RemotePolicy(url, timeout=30)
        try:
            assert history_of(remote) == (0.5, 0.2)
            # Two robots ask by one connection, each with frames of its own.
            robots = [FrameHistory.of(remote) for _ in range(2)]
            for i in range(4):
                for number, frames in enumerate(robots):
                    images = {"top": np.full((4, 6, 3), 50 * number + i, np.uint8)}
                    chunk = remote.predict(frames.with_past_frames(Observation(images, np.zeros(2), "go", i / 10)))
                    assert chunk is not None
                    assert chunk.actions[0].tolist() == [-1, 50 * number + i - 2 if i >= 2 else -1]
        finally:
            remote.close()


def test_a_policy_without_a_history_takes_no_past_frames() -> None:
    with served(Mark()) as url, PlainClient(url) as robot:
        assert robot.metadata["history"] == [] and "vla/past" not in robot.metadata["extras"]
        with pytest.raises(RuntimeError, match="vla/past: this policy takes a list of 0 maps"):
            robot.infer(message() | {"vla/past": [{}]})
    assert history_of(Mark()) == ()
