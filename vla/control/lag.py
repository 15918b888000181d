"""Detection of joints that do not follow their commands."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from vla.embodiment import Embodiment
from vla.kinematics.action_space import difference


class LagMonitor:
    """Detects stalled joints: their following error exceeds a fraction of their range for some time.

    Grippers are not monitored: they hold objects.

    Args:
        body: The robot's embodiment.
        stall: Largest following error, as a fraction of the joint's range.
        seconds: Time for which the error must exceed it [s].
        period: Duration of a tick [s].
    """

    def __init__(self, body: Embodiment, stall: float, seconds: float, period: float) -> None:
        measured = np.array([at is not None for at in body.measured_by])
        allowed = stall * (np.array(body.action_high) - np.array(body.action_low))
        self._body, self._seconds = body, seconds - period / 2
        self._allowed = np.where(body.is_position_action & measured & ~body.is_gripper, allowed, np.inf)
        self._since: Float[np.ndarray, "a"] = np.full(len(body.action), np.inf)

    def stalled(self, state: Float[np.ndarray, "s"], command: Float[np.ndarray, "a"], now: float) -> list[str]:
        """The joints that are stalled at `now` [s]; they have had one tick to follow `command`."""
        lag = np.abs(difference(self._body, self._body.hold_action(state), command))
        self._since = np.where(lag > self._allowed, np.minimum(self._since, now), np.inf)
        late = now - self._since > self._seconds
        return [name for name, is_late in zip(self._body.action, late, strict=True) if is_late]
