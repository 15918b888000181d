"""What an arm is to the control loop."""

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
    """What the bus or a camera did not do. A `transient` one may be gone at the next try; `camera` names the camera."""

    def __init__(self, message: str, *, transient: bool, camera: str | None = None) -> None:
        super().__init__(message, EXIT_CODES["robot"])
        self.transient, self.camera = transient, camera


def image_sizes(robot: Robot) -> Mapping[str, tuple[int, int]]:
    """Height and width of the images of each camera [pixels], as far as the robot knows them before it is connected."""
    return getattr(robot, "image_sizes", {})


@runtime_checkable
class Robot(Protocol):
    """An arm that one thread owns; `with robot:` connects it. Times are `time.monotonic`'s [s].

    Every method but `relax` may raise RobotFault. Actions are absolute targets in the units of the embodiment.
    """

    @property
    def embodiment(self) -> Embodiment: ...

    @property
    def limits(self) -> Limits: ...

    def __enter__(self) -> Robot: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Disconnects; torque stays as `hold` or `relax` left it."""

    def state(self) -> tuple[Float[np.ndarray, "s"], float]:
        """The state, measured now, and when."""

    def observe(self, instruction: str) -> Observation:
        """The state, measured now, and each camera's latest image; `time` is that of the oldest of them."""

    def command(self, action: Float[np.ndarray, "a"]) -> None:
        """Sends targets that have been made safe."""

    def hold(self, last: Float[np.ndarray, "a"]) -> None:
        """Stays at `last`, the last command, with torque on."""

    def relax(self) -> None:
        """Torque off, as far as the bus still answers."""


@runtime_checkable
class ReadOnlyConnection(Protocol):
    """A robot whose motors `with robot:` would change, and that can be read without."""

    def connect_read_only(self) -> None:
        """In place of `__enter__`: nothing is written to the motors, until `__exit__` and by it."""
