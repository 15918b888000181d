"""The clock of the control loop."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

from vla.common.thread_priority import realtime_priority
from vla.control.events import EventLog

NO_PRIORITY = "the loop has no real-time priority, other programs may delay it: `vla doctor` explains how to set it up"


@runtime_checkable
class Clock(Protocol):
    """A monotonic clock that can sleep."""

    def now(self) -> float:
        """The current time [s]; monotonic."""

    def sleep_until(self, moment: float) -> None:
        """Sleeps until the time `moment` [s]; returns at once if it has passed."""


class WallClock:
    """The machine's monotonic clock, which robots and policies also use."""

    SPIN = 0.0004
    """Busy-waiting before the deadline [s]: a sleeping thread wakes up late by this much."""

    now = staticmethod(time.monotonic)

    def sleep_until(self, moment: float) -> None:
        """See `Clock`."""
        if (rest := moment - time.monotonic() - self.SPIN) > 0:
            time.sleep(rest)
        while time.monotonic() < moment:
            pass

    @contextmanager
    def priority(self, events: EventLog) -> Iterator[None]:
        """Runs the block with real-time priority (`realtime_priority`), or adds a warning to `events` without it.

        Existing objects are frozen, so that garbage collection does not scan them: with torch imported, 0.1 s.
        """
        gc.collect()
        gc.freeze()
        try:
            with realtime_priority() as first:
                if not first:
                    events.add(0.0, NO_PRIORITY, warning=True)
                yield
        finally:
            gc.unfreeze()
