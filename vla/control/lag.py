"""Joints that do not follow their commands."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from vla.embodiment import Embodiment
from vla.kinematics.action_space import difference


class LagMonitor:
    """Finds joints that are further from their commands than `stall`, a fraction of their ranges, for `seconds`.

    By elapsed time, whatever the rates of the loop and the policy. Grippers are left out: they hold things.
    """

    def __init__(self, body: Embodiment, stall: float, seconds: float, period: float) -> None:
        measured = np.array([at is not None for at in body.measured_by])
        reach = stall * (np.array(body.action_high) - np.array(body.action_low))
        self._body, self._seconds = body, seconds - period / 2
        self._slack = np.where(body.is_position_action & measured & ~body.is_gripper, reach, np.inf)
        self._since: Float[np.ndarray, "a"] = np.full(len(body.action), np.inf)

    def stalled(self, state: Float[np.ndarray, "s"], command: Float[np.ndarray, "a"], now: float) -> list[str]:
        """The joints that are stalled at `now` [s]; `command` is what they have had a tick to follow."""
        lag = np.abs(difference(self._body, self._body.hold_action(state), command))
        self._since = np.where(lag > self._slack, np.minimum(self._since, now), np.inf)
        late = now - self._since > self._seconds
        return [name for name, is_late in zip(self._body.action, late, strict=True) if is_late]
