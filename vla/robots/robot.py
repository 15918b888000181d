"""The robot interface of the control loop."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from vla.embodiment import Embodiment
from vla.errors import EXIT_CODES, Failure
from vla.robots.limits import Limits
from vla.types import Observation


class RobotFault(Failure):
    """A failed operation of the bus or a camera.

    Args:
        message: What failed.
        transient: Whether a retry may succeed.
        camera: The camera's name, for a fault of a camera.
    """

    def __init__(self, message: str, *, transient: bool, camera: str | None = None) -> None:
        super().__init__(message, EXIT_CODES["robot"])
        self.transient, self.camera = transient, camera


def image_sizes(robot: Robot) -> Mapping[str, tuple[int, int]]:
    """Height and width of the images by camera [pixels], as far as they are known before the robot is connected."""
    return getattr(robot, "image_sizes", {})


@runtime_checkable
class Robot(Protocol):
    """A robot arm, owned by one thread. `with robot:` connects it. Times are those of `time.monotonic` [s].

    Every method except `disable_torque` may raise RobotFault. Actions are absolute targets in the embodiment's units.
    """

    @property
    def embodiment(self) -> Embodiment:
        """The embodiment."""
        ...

    @property
    def limits(self) -> Limits:
        """The limits."""
        ...

    def __enter__(self) -> Robot: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Disconnects and leaves the torque unchanged."""

    def state(self) -> tuple[Float[np.ndarray, "s"], float]:
        """Measures the state; returns it and the time of the measurement."""

    def observe(self, instruction: str) -> Observation:
        """Measures the state and takes the latest image of each camera. Its `time` is that of the oldest of them."""

    def command(self, action: Float[np.ndarray, "a"]) -> None:
        """Sends targets that have passed the safety filter."""

    def hold(self, last: Float[np.ndarray, "a"]) -> None:
        """Holds at the last command `last`, with torque on."""

    def disable_torque(self) -> None:
        """Disables torque, as far as the bus responds."""


@runtime_checkable
class ReadOnlyConnection(Protocol):
    """A robot that can be connected without writing to its motors, unlike by `with robot:`."""

    def connect_read_only(self) -> None:
        """Connects in place of `__enter__`. Nothing is written to the motors, also not by `__exit__`."""
