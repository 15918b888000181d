"""Live status of a run of the control loop: a status line on the terminal, warnings, and the data of a local page."""

from __future__ import annotations

import shutil
import sys
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace

from vla.control.events import EventLog
from vla.control.tick import Tick

EVERY = 1.0
"""Interval of the status line [s]."""
CLEAR = "\r\x1b[K"
"""Moves to the start of the terminal line and erases it."""


@dataclass(frozen=True)
class Snapshot:
    """The current status. `rate` is commands per second over the last ticks, `delay` the last inference delay [ms]."""

    seconds: float
    rate: float
    delay: float | None
    queue: int
    """Number of actions in the action queue."""
    holds: int
    source: str
    last_warning: str
    hottest: str
    """The hottest servo and its temperature; empty if none is read."""

    def line(self) -> str:
        """The status as one line of text."""
        delay = "-" if self.delay is None else f"{self.delay:.0f} ms"
        text = (
            f"{self.seconds:6.1f} s  {self.rate:5.1f} Hz  delay {delay}  queue {self.queue}  held {self.holds}  "
            f"{self.source}"
        ) + (f"  {self.hottest}" if self.hottest else "")
        return f"{text}  last: {self.last_warning}" if self.last_warning else text


class Status:
    """Prints the live status from a thread. Pass it to the loop as `watch`, inside `with`.

    Args:
        events: The event log, whose warnings are printed to the standard error.
        line: Whether to show a status line if the standard error is a terminal.
    """

    def __init__(self, events: EventLog, line: bool = True) -> None:
        self._events, self._line = events, line
        self._ticks: deque[tuple[float, bool]] = deque(maxlen=100)
        """Time of each recent tick, and whether a command was sent."""
        self._last: Tick | None = None
        self._began, self._holds = 0.0, 0
        self._delay: float | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="status", daemon=True)
        self._last_warning = ""

    def __enter__(self) -> Status:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._thread.join(EVERY)
        self._print()
        if self._line and sys.stderr.isatty():
            print(file=sys.stderr, flush=True)

    def __call__(self, tick: Tick) -> None:
        """Takes a tick of the loop."""
        self._began = self._began or tick.time
        self._holds += tick.source == "hold"
        self._delay = tick.infer if tick.infer is not None else self._delay
        self._ticks.append((tick.time, tick.sent is not None))
        self._last = replace(tick, observation=None)  # images are large

    def snapshot(self) -> Snapshot | None:
        """The current status; None before the first tick."""
        last, ticks = self._last, list(self._ticks)
        if last is None:
            return None
        span = ticks[-1][0] - ticks[0][0]
        rate = sum(sent for _, sent in ticks[1:]) / span if span > 0 else 0.0
        delay = None if self._delay is None else 1000 * self._delay
        return Snapshot(
            last.time - self._began,
            rate,
            delay,
            last.left,
            self._holds,
            last.source,
            self._last_warning,
            _hottest(last.temperatures),
        )

    def to_dict(self) -> dict[str, object]:
        """The snapshot and all events as JSON values."""
        now = self.snapshot()
        return {"now": None if now is None else asdict(now), "events": [asdict(e) for e in list(self._events.entries)]}

    def _run(self) -> None:
        while not self._over.wait(EVERY):
            self._print()

    def _print(self) -> None:
        terminal = self._line and sys.stderr.isatty()
        while self._events.pending_warnings:
            event = self._events.pending_warnings.popleft()
            self._last_warning = event.what
            print(f"{CLEAR if terminal else ''}{event.time:.1f} s: {event.what}", file=sys.stderr, flush=True)
        if terminal and (now := self.snapshot()) is not None:
            width = shutil.get_terminal_size().columns - 1  # a wrapped line could not be erased
            print(f"{CLEAR}{now.line()[:width]}", end="", file=sys.stderr, flush=True)


def _hottest(temperatures: Mapping[str, float]) -> str:
    copied = dict(temperatures)
    if not copied:
        return ""
    servo = max(copied, key=copied.__getitem__)
    return f"{servo} {copied[servo]:.0f} °C"
