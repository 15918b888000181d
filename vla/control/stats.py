"""What a run of the control loop came to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Spread:
    """Percentiles and the maximum of durations [s]; 0 where there were none."""

    p50: float
    p99: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        if not len(values):
            return cls(0.0, 0.0, 0.0)
        p50, p99 = np.percentile(values, (50, 99))
        return cls(float(p50), float(p99), float(max(values)))


@dataclass(frozen=True)
class ControlStats:
    """Counts are of ticks unless they say otherwise. `to_dict` is made of JSON's types."""

    reason: str
    """Why it ended: "done" where its time was over."""
    seconds: float
    ticks: int
    """Those that were carried out."""
    missed: int
    """Those that were skipped, because one before took too long."""
    rate: float
    """Commands that reached the motors, a second."""
    observe: Spread
    infer: Spread
    command: Spread
    jitter: Spread
    """How late ticks began."""
    chunks: int
    """Answers that were acted by."""
    invalid: int
    """Answers without a chunk to act by: none, a wrong width, not finite, or too late as a whole."""
    stale: float
    """The fraction of all actions that came too late for their step, and were never carried out."""
    clamps: dict[str, int]
    """Commands that each limit changed: finite, position, velocity, acceleration, workspace."""
    holds: int
    """Those in which the arm stood or braked for want of an action."""
    faults: int
    """Calls to the robot that failed, retries among them."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class Tally:
    """What a run counts as it goes on."""

    observe: list[float] = field(default_factory=list)
    infer: list[float] = field(default_factory=list)
    command: list[float] = field(default_factory=list)
    jitter: list[float] = field(default_factory=list)
    ticks: int = 0
    missed: int = 0
    chunks: int = 0
    invalid: int = 0
    holds: int = 0
    faults: int = 0

    def stats(self, reason: str, seconds: float, stale: float, clamps: Mapping[str, int]) -> ControlStats:
        return ControlStats(
            reason=reason,
            seconds=seconds,
            ticks=self.ticks,
            missed=self.missed,
            rate=len(self.command) / seconds if seconds > 0 else 0.0,
            observe=Spread.of(self.observe),
            infer=Spread.of(self.infer),
            command=Spread.of(self.command),
            jitter=Spread.of(self.jitter),
            chunks=self.chunks,
            invalid=self.invalid,
            stale=stale,
            clamps=dict(clamps),
            holds=self.holds,
            faults=self.faults,
        )
