"""What a recorder is: the only sink of demonstrations, rollouts and real runs."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from vla.types import Observation


@runtime_checkable
class Recorder(Protocol):
    """Takes one episode after another: `start`, a `step` for each action, then `finish` or `abort`.

    An episode that never finishes is dropped; `start` begins a new one whatever went before.
    """

    def start(self, instruction: str, **info: Any) -> None:
        """Begins an episode. `info` (JSON values: seed, task, policy) is kept with it."""
        ...

    def step(self, observation: Observation, action: Float[np.ndarray, "a"], **info: Any) -> None:
        """One step: what was seen and the action taken from it.

        `chunk=` (k, a) is the policy's chunk in force, row 0 the action of this step; `points=` (p, 2) is where
        what the instruction names is (`Episode.points`); `subtask=` the sub-tasks that cover the step, if any. A
        recorder that has no use for an info ignores it.
        """
        ...

    def finish(self, success: bool | None) -> None:
        """Ends the episode and keeps it; `success` is None where nobody knows."""
        ...

    def abort(self) -> None:
        """Ends the episode, if one is under way, and drops it."""
        ...
