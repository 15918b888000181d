"""What happened in a run of the control loop, with times and counts."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass

TOGETHER = 1.0
"""[s]. The same event within this time of its last occurrence is counted, not listed again."""
MOST = 1000
"""Entries of a log; later ones that are not listed yet are only counted."""


@dataclass
class Event:
    """`count` occurrences of `what` from `time` to `last` [s, since the run began]."""

    time: float
    what: str
    warning: bool
    """Whether the operator is to see it while it runs."""
    count: int = 1
    last: float = 0.0


class EventLog:
    """Events in the order in which they began. One thread adds; another may read `entries` and take `unseen`.

    Warnings of `known` were shown in an earlier run.
    """

    def __init__(self, known: Collection[str] = ()) -> None:
        self._known = known
        self.entries: list[Event] = []
        self.left_out = 0
        self.unseen: deque[Event] = deque(maxlen=MOST)
        self._latest: dict[str, Event] = {}

    def add(self, time: float, what: str, *, warning: bool = False) -> None:
        """`time` [s] since the run began."""
        latest = self._latest.get(what)
        if latest is not None and time - latest.last <= TOGETHER:
            latest.count, latest.last = latest.count + 1, time
            return
        if len(self.entries) >= MOST:
            self.left_out += 1
            return
        self._latest[what] = event = Event(time, what, warning, last=time)
        self.entries.append(event)
        if warning and what not in self._known:
            self.unseen.append(event)
