"""The latched emergency stop."""

from __future__ import annotations

import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType

SIGNALS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated", signal.SIGUSR1: "emergency stop: SIGUSR1"}


class EmergencyStop:
    """Once tripped it stays so, and keeps the first reason.

    `poll` also asks `sources`, such as a topic: each says a reason, or None while all is well.
    """

    def __init__(self, sources: Sequence[Callable[[], str | None]] = ()) -> None:
        self._sources = sources
        self.reason: str | None = None

    def trip(self, reason: str) -> None:
        self.reason = self.reason or reason

    def poll(self) -> str | None:
        for source in self._sources if self.reason is None else ():
            if (reason := source()) is not None:
                self.trip(reason)
        return self.reason

    @contextmanager
    def signals(self) -> Iterator[None]:
        """SIGINT, SIGTERM and SIGUSR1 trip it; off the main thread, nothing changes."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def tripped(number: int, _: FrameType | None) -> None:
            self.trip(SIGNALS[signal.Signals(number)])

        before = {number: signal.signal(number, tripped) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def any_key() -> str | None:
    """A source: the enter key, where there is a terminal."""
    if sys.stdin is not None and sys.stdin.isatty() and select.select([sys.stdin], [], [], 0)[0]:
        sys.stdin.readline()
        return "emergency stop: key"
    return None
