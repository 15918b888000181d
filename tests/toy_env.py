"""A small environment that tells a number, and policies that say it: nothing is drawn."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from multiprocessing.util import Finalize
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from jaxtyping import Float

from vla.embodiment import Embodiment
from vla.types import ActionChunk, Observation, RTCPrefix

ROBOT = Embodiment("toy", ("front",), ("x [m]", "y [m]"), ("x [m]", "y [m]"), (-99.0, -99.0), (99.0, 99.0), 10.0)
LENGTHS = (3, 5, 4)


class ToyEnv(gymnasium.Env[dict[str, Any], Float[np.ndarray, "a"]]):
    """Tells a number in its instruction; succeeds if every action's first component is that number."""

    def __init__(self) -> None:
        self.embodiment = ROBOT
        self.action_space = spaces.Box(-99, 99, (2,), np.float32)
        self.observation_space = spaces.Dict(
            images=spaces.Dict(front=spaces.Box(0, 255, (4, 4, 3), np.uint8)),
            state=spaces.Box(-99, 99, (2,), np.float32),
            instruction=spaces.Text(20),
        )
        self.actions: list[Float[np.ndarray, "a"]] = []
        self.closed = False

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        super().reset(seed=seed)
        assert seed is not None
        self.number = seed + int((options or {}).get("add", 0))
        self.end, self.actions = LENGTHS[seed % 3], []
        return self._observe(), self._info()

    def step(self, action: Float[np.ndarray, "a"]) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        self.actions.append(np.array(action))
        ended = len(self.actions) == self.end
        # An even seed meets its end as success, an odd one by the limit of its steps.
        return self._observe(), 0.0, ended and self.number % 2 == 0, ended and self.number % 2 == 1, self._info()

    def _observe(self) -> dict[str, Any]:
        steps = len(self.actions)
        return {
            "images": {"front": np.full((4, 4, 3), self.number % 256, np.uint8)},
            "state": np.array([self.number, steps], np.float32),
            "instruction": f"go to {self.number}",
        }

    def _info(self) -> dict[str, Any]:
        right = [a[0] == self.number for a in self.actions]
        return {
            "success": bool(right) and all(right),
            "wrong_object": self.number % 5 == 0,
            "instruction": f"go to {self.number}",
        }

    def close(self) -> None:
        self.closed = True


class Echo:
    """Answers with the number of the instruction, and the step in the second component."""

    def __init__(self, embodiment: Embodiment = ROBOT, horizon: int = 3, invalid: Sequence[int] = ()) -> None:
        self.embodiment, self.horizon, self.invalid = embodiment, horizon, set(invalid)
        self.asked: list[int] = []

    def reset(self) -> None:
        """Nothing is remembered."""

    def predict(self, observation: Observation, *, prefix: RTCPrefix | None = None) -> ActionChunk | None:
        number, step = int(observation.instruction.split()[-1]), int(observation.state[1])
        assert observation.state[0] == number
        assert observation.time == step / 10
        if step in self.invalid:
            return None
        rows = [[number, step + i] for i in range(self.horizon)]
        return ActionChunk(np.array(rows, np.float64), observation.time, 0.1)


class BatchEcho(Echo):
    def predict_batch(
        self, observations: Sequence[Observation], *, prefix: RTCPrefix | None = None
    ) -> list[ActionChunk | None]:
        self.asked.append(len(observations))
        return [self.predict(o) for o in observations]


class Counting(Echo):
    """Remembers: an action's second component is how many chunks this episode has had, so states must not mix."""

    def reset(self) -> None:
        self.chunks = 0

    def predict(self, observation: Observation, *, prefix: RTCPrefix | None = None) -> ActionChunk | None:
        self.chunks += 1
        number = int(observation.instruction.split()[-1])
        return ActionChunk(np.array([[number, self.chunks]] * self.horizon, np.float64), observation.time, 0.1)


class Bad(BatchEcho):
    """Raises at the number 6, with which it is asked first; 7 takes the whole process down."""

    def predict(self, observation: Observation, *, prefix: RTCPrefix | None = None) -> ActionChunk | None:
        number = int(observation.instruction.split()[-1])
        if number == 6:
            raise ValueError("I do not like 6")
        if number == 7:
            os._exit(3)
        return super().predict(observation)


class Rude(BatchEcho):
    """Its process ends badly once all is done, as one whose renderer cannot be torn down."""

    def __init__(self) -> None:
        super().__init__()
        Finalize(None, os._exit, args=(5,), exitpriority=0)


class Elsewhere(Echo):
    """Of another robot."""

    def __init__(self) -> None:
        super().__init__(replace(ROBOT, cameras=("top",)))


class BadEnv(ToyEnv):
    """Raises at the second step of the number 14."""

    def step(self, action: Float[np.ndarray, "a"]) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        if self.number == 14 and self.actions:
            raise RuntimeError("out of order")
        return super().step(action)


def load(kind: type[Echo]) -> Callable[[gymnasium.Env[Any, Any]], Echo]:
    """For a process of its own: Counting remembers, so each environment has one; the others are shared."""
    shared = kind()
    return lambda env: kind() if kind is Counting else shared
