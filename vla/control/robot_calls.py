"""Calls to a robot within a tick, with retries before the deadline and handling of faults."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from vla.control.clock import Clock
from vla.errors import Outcome
from vla.robots.robot import RobotFault

TRIES = 3
"""Largest number of attempts of a call in one tick, before its deadline."""


class Note(Protocol):
    """Adds an event."""

    def __call__(self, event: str, *, warning: bool = False) -> None:
        """Adds the event."""


class RobotCalls:
    """Calls a robot with retries and handles its faults.

    Args:
        clock: The clock of the deadlines.
        camera_timeout: Time [s] for which a camera may fail before the run ends. None: no limit. Until then the arm
            continues with the actions in the queue.
        add: Called with each fault.
        end: Called with the reason when the run must end: for a fault that is not transient, or a camera timeout.
    """

    def __init__(
        self, clock: Clock, camera_timeout: float | None, add: Note, end: Callable[[str, Outcome], None]
    ) -> None:
        self._clock, self._camera_timeout, self._add, self._end = clock, camera_timeout, add, end
        self._blind_since: float | None = None
        self.fault: RobotFault | None = None
        """The last fault since this was set to None, camera faults excluded."""
        self.faults = 0
        """Number of faults, retries included."""

    def attempt[T](self, call: Callable[[], T], deadline: float) -> T | None:
        """The result of `call`; None if it failed until `deadline` [s], or TRIES times."""
        for _ in range(TRIES):
            try:
                return call()
            except RobotFault as error:
                fault = error
            self.note(fault)
            if fault.camera is not None or not fault.transient or self._clock.now() >= deadline:
                break
        return None

    def note(self, fault: RobotFault) -> None:
        """Counts a fault and ends the run if required."""
        self.faults += 1
        self._add(f"robot: {fault}", warning=True)
        if fault.camera is not None:
            now = self._clock.now()
            self._blind_since = now if self._blind_since is None else self._blind_since
            if self._camera_timeout is not None and now - self._blind_since >= self._camera_timeout:
                self._end(f"robot: {fault}", "robot")
            return
        self.fault = fault
        if not fault.transient:
            self._end(f"robot: {fault}", "robot")

    def cameras_ok(self) -> None:
        """Resets the camera timeout: all cameras delivered an image."""
        self._blind_since = None
