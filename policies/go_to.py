"""The policy that moves a robot to a pose, slowly, and stays there."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from vla.embodiment import Embodiment
from vla.types import ActionChunk, Observation

HORIZON = 1.0
"""[s] of a chunk."""


class GoToPolicy:
    """All components start and arrive together, on a straight line, none faster than `speed` (its unit a second).

    `goal` is NaN for a component that stays where it is. The path is planned once, from the first observation.
    """

    def __init__(self, embodiment: Embodiment, goal: Float[np.ndarray, "a"], speed: Sequence[float]) -> None:
        self.embodiment, self._goal, self._speed = embodiment, goal, np.array(speed, float)
        self.reset()

    def reset(self) -> None:
        self._start: Float[np.ndarray, "a"] | None = None
        self._began = self.seconds = 0.0

    def predict(
        self, observation: Observation, *, prefix: Float[np.ndarray, "k a"] | None = None
    ) -> ActionChunk | None:
        if self._start is None:
            self._start = self.embodiment.hold_action(observation.state)
            self._began = observation.time
            self._goal = np.where(np.isnan(self._goal), self._start, self._goal)
            self.seconds = float(np.max(np.abs(self._goal - self._start) / self._speed))
        hz = self.embodiment.control_hz
        at = observation.time - self._began + np.arange(int(HORIZON * hz) + 1) / hz
        share = np.clip(at / max(self.seconds, 1e-9), 0.0, 1.0)
        actions = self._start + share[:, None] * (self._goal - self._start)
        return ActionChunk(actions, observation.time, 1 / hz)

    def left(self, observed: Float[np.ndarray, "s"]) -> Float[np.ndarray, "a"]:
        """How far each component is from the goal in a state, once there is a path."""
        return np.abs(self.embodiment.hold_action(observed) - self._goal)

    def arrived(self, time: float) -> bool:
        """Whether the path is over at `time`, the clock of the observations."""
        return self._start is not None and time - self._began >= self.seconds
