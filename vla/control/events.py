"""The event log of a run of the control loop, with times and counts."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass

TOGETHER = 1.0
"""Time [s] within which a repetition of an event increases its count instead of adding an entry."""
MAX_EVENTS = 1000
"""Largest number of entries of a log; further events are only counted."""


@dataclass
class Event:
    """`count` occurrences of the event `what` from `time` to `last` [s since the start of the run]."""

    time: float
    what: str
    warning: bool
    """Whether it is shown to the operator during the run."""
    count: int = 1
    last: float = 0.0


class EventLog:
    """Events in order of their first occurrence.

    One thread adds events; another may read `entries` and take from `pending_warnings`.

    Args:
        known: Warnings that were shown in an earlier run and are not shown again.
    """

    def __init__(self, known: Collection[str] = ()) -> None:
        self._shown_before = known
        self.entries: list[Event] = []
        self.left_out = 0
        """Number of events without an entry."""
        self.pending_warnings: deque[Event] = deque(maxlen=MAX_EVENTS)
        """Warnings not yet shown to the operator."""
        self._latest: dict[str, Event] = {}

    def add(self, time: float, what: str, *, warning: bool = False) -> None:
        """Adds an event at `time` [s since the start of the run]."""
        latest = self._latest.get(what)
        if latest is not None and time - latest.last <= TOGETHER:
            latest.count, latest.last = latest.count + 1, time
            return
        if len(self.entries) >= MAX_EVENTS:
            self.left_out += 1
            return
        self._latest[what] = event = Event(time, what, warning, last=time)
        self.entries.append(event)
        if warning and what not in self._shown_before:
            self.pending_warnings.append(event)
