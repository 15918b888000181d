"""A run of the control loop as people watch it: a line on the terminal, warnings as they come, a local page."""

from __future__ import annotations

import shutil
import sys
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from types import TracebackType

from vla.control.events import EventLog
from vla.control.tick import Tick

EVERY = 1.0
"""[s] between two lines."""
CLEAR = "\r\x1b[K"
"""To the start of a terminal's line, which is erased."""


@dataclass(frozen=True)
class Snapshot:
    """What is going on. `rate` is of commands a second, over the last ticks; `delay` [ms] the policy's last."""

    seconds: float
    rate: float
    delay: float | None
    queue: int
    """Actions that are still to be carried out."""
    holds: int
    source: str
    last_warning: str
    hottest: str
    """The servo of the highest temperature, and that; empty where none is read."""

    def line(self) -> str:
        delay = "-" if self.delay is None else f"{self.delay:.0f} ms"
        text = (
            f"{self.seconds:6.1f} s  {self.rate:5.1f} Hz  delay {delay}  queue {self.queue}  held {self.holds}  "
            f"{self.source}"
        ) + (f"  {self.hottest}" if self.hottest else "")
        return f"{text}  last: {self.last_warning}" if self.last_warning else text


class Status:
    """Give it to the loop as `watch`, inside `with`: a thread prints warnings of `events` to the standard error, and on
    a terminal with `line` also one of what is going on."""

    def __init__(self, events: EventLog, line: bool = True) -> None:
        self._events, self._line = events, line
        self._ticks: deque[tuple[float, bool]] = deque(maxlen=100)
        """Of the last ticks the time, and whether a command was sent."""
        self._last: Tick | None = None
        self._began, self._holds = 0.0, 0
        self._delay: float | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="status", daemon=True)
        self._last_warning = ""

    def __enter__(self) -> Status:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join(EVERY)
        self._print()
        if self._line and sys.stderr.isatty():
            print(file=sys.stderr, flush=True)

    def __call__(self, tick: Tick) -> None:
        self._began = self._began or tick.time
        self._holds += tick.source == "hold"
        self._delay = tick.infer if tick.infer is not None else self._delay
        self._ticks.append((tick.time, tick.sent is not None))
        self._last = replace(tick, observation=None)  # images are many

    def snapshot(self) -> Snapshot | None:
        """None before the first tick."""
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
        """The snapshot and all events, as JSON values."""
        now = self.snapshot()
        return {"now": None if now is None else asdict(now), "events": [asdict(e) for e in list(self._events.entries)]}

    def _run(self) -> None:
        while not self._over.wait(EVERY):
            self._print()

    def _print(self) -> None:
        terminal = self._line and sys.stderr.isatty()
        while self._events.unseen:
            event = self._events.unseen.popleft()
            self._last_warning = event.what
            print(f"{CLEAR if terminal else ''}{event.time:.1f} s: {event.what}", file=sys.stderr, flush=True)
        if terminal and (now := self.snapshot()) is not None:
            width = shutil.get_terminal_size().columns - 1  # one that wraps could not be erased
            print(f"{CLEAR}{now.line()[:width]}", end="", file=sys.stderr, flush=True)


def _hottest(temperatures: Mapping[str, float]) -> str:
    known = dict(temperatures)
    if not known:
        return ""
    servo = max(known, key=known.__getitem__)
    return f"{servo} {known[servo]:.0f} °C"
