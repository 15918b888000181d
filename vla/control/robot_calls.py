"""Calls to a robot within a tick: tried again while there is time, their faults counted and judged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from vla.control.clock import Clock
from vla.errors import Outcome
from vla.robots.robot import RobotFault

TRIES = 3
"""Of a call in one tick, while its time lasts."""


class Note(Protocol):
    """Adds an event."""

    def __call__(self, what: str, *, warning: bool = False) -> None: ...


class RobotCalls:
    """Each fault is given to `add`. `end` is called with the reason where a fault will not pass, and where a camera
    fails for `camera_timeout` [s] (None: however long); until then the arm goes on with the actions that there are."""

    def __init__(
        self, clock: Clock, camera_timeout: float | None, add: Note, end: Callable[[str, Outcome], None]
    ) -> None:
        self._clock, self._camera_timeout, self._add, self._end = clock, camera_timeout, add, end
        self._blind_since: float | None = None
        self.fault: RobotFault | None = None
        """The last since it was set to None, but for those of cameras."""
        self.faults = 0
        """All of them, retries among them."""

    def attempt[T](self, call: Callable[[], T], deadline: float) -> T | None:
        """What it returns; None where it failed until `deadline` [s], or TRIES times."""
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
        """Counts a fault, and ends the run where it is to."""
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

    def seen(self) -> None:
        """All cameras gave an image."""
        self._blind_since = None
