"""Time as the control loop sees it."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, runtime_checkable

from vla.common.thread_priority import realtime_priority
from vla.control.events import EventLog

NO_PRIORITY = "the loop has no real-time priority, other programs may delay it: `vla doctor` says how to get it"


@runtime_checkable
class Clock(Protocol):
    def now(self) -> float:
        """[s], never going back."""

    def sleep_until(self, moment: float) -> None:
        """Returns at `moment`, or at once where that is past."""


class WallClock:
    """The machine's monotonic clock, the one by which robots and policies tell time too."""

    SPIN = 0.0004
    """[s] before the moment in which it watches the clock, since a sleeping thread wakes late by that much."""

    now = staticmethod(time.monotonic)

    def sleep_until(self, moment: float) -> None:
        if (rest := moment - time.monotonic() - self.SPIN) > 0:
            time.sleep(rest)
        while time.monotonic() < moment:
            pass

    @contextmanager
    def priority(self, events: EventLog) -> Iterator[None]:
        """This thread goes before others (`realtime_priority`), which is an event where the system does not let it, and
        none waits for garbage collection to go through what there was before: with torch imported, 0.1 s."""
        gc.collect()
        gc.freeze()
        try:
            with realtime_priority() as first:
                if not first:
                    events.add(0.0, NO_PRIORITY, warning=True)
                yield
        finally:
            gc.unfreeze()
