"""A robot that is read but receives no commands."""

from __future__ import annotations

from types import TracebackType

import numpy as np
from jaxtyping import Float

from vla.robots.robot import ReadOnlyConnection, Robot
from vla.robots.servo_health import HealthReporting
from vla.types import Observation


class DryRun:
    """Wraps `robot` and discards its commands. It is connected so that its motors keep their torque state."""

    def __init__(self, robot: Robot) -> None:
        self._robot, self.embodiment, self.limits = robot, robot.embodiment, robot.limits
        if isinstance(robot, HealthReporting):
            self.health = robot.health

    def __enter__(self) -> DryRun:
        if isinstance(self._robot, ReadOnlyConnection):
            self._robot.connect_read_only()
        else:
            self._robot.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._robot.__exit__(kind, error, trace)

    def state(self) -> tuple[Float[np.ndarray, "s"], float]:
        """See `Robot`."""
        return self._robot.state()

    def observe(self, instruction: str) -> Observation:
        """See `Robot`."""
        return self._robot.observe(instruction)

    def command(self, action: Float[np.ndarray, "a"]) -> None:
        """Does nothing: commands are not sent."""

    def hold(self, last: Float[np.ndarray, "a"]) -> None:
        """Does nothing: commands are not sent."""

    def disable_torque(self) -> None:
        """Does nothing: commands are not sent."""
