"""The recorder interface, for demonstrations, rollouts and runs on real robots."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from vla.types import Observation


@runtime_checkable
class Recorder(Protocol):
    """Records episodes: `start`, a `step` for each action, then `finish` or `abort`.

    An episode that is not finished is dropped; `start` always begins a new one.
    """

    def start(self, instruction: str, **info: Any) -> None:
        """Begins an episode. `info` (JSON values: seed, task, policy) is stored with it."""
        ...

    def step(self, observation: Observation, action: Float[np.ndarray, "a"], **info: Any) -> None:
        """Records the observation and action of one step.

        Args:
            observation: The observation.
            action: The action executed on it.
            **info: Optional values; a recorder ignores those it does not use. `chunk` (k, a): the policy's action
                chunk in execution, whose row 0 is the action of this step. `points` (p, 2): image positions of the
                objects in the instruction (`Episode.points`). `subtask`: the sub-tasks that cover the step.
        """
        ...

    def finish(self, success: bool | None) -> None:
        """Ends the episode and stores it; `success` is None if it is unknown."""
        ...

    def abort(self) -> None:
        """Drops the current episode, if any."""
        ...
