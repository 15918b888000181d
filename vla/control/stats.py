"""The statistics of a run of the control loop."""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from vla.common.percentiles import Spread
from vla.control.camera_stats import CameraStats, CameraTally
from vla.control.events import Event, EventLog
from vla.errors import Outcome

MET = "the task is met"
"""The reason of a run that ended because the simulated task succeeded."""


@dataclass(frozen=True)
class ControlStats:
    """Statistics of a run. Durations are in [s]."""

    reason: str
    """Why the run ended: "done" if its time was over."""
    outcome: Outcome
    seconds: float
    ticks: int
    """Number of executed ticks."""
    missed: int
    """Number of ticks skipped as missed deadlines."""
    rate: float
    """Commands per second that reached the motors."""
    observe: Spread
    """Duration of an observation."""
    infer: Spread
    """Inference delay."""
    command: Spread
    """Duration of sending a command."""
    jitter: Spread
    """Lateness of the ticks."""
    chunks: int
    """Number of usable answers."""
    invalid: int
    """Number of answers without a usable chunk: none, a wrong width, not finite, or entirely too late."""
    stale: float
    """Fraction of all actions that arrived after their step and were not executed."""
    clamps: dict[str, int]
    """Number of commands changed by each limit: finite, position, velocity, acceleration, workspace."""
    holds: int
    """Number of ticks in which the arm held or braked because no action was available."""
    faults: int
    """Number of failed calls to the robot, retries included."""
    cameras: Mapping[str, CameraStats]
    """By camera, if the robot reports capture times."""
    events: Sequence[Event]
    events_left_out: int
    """Number of events beyond `vla.control.events.MAX_EVENTS`."""

    def to_dict(self) -> dict[str, Any]:
        """The statistics as JSON values."""
        return asdict(self)


@dataclass
class Tally:
    """The counters of a run in progress."""

    # Plain numbers: of an hour of ticks at 100 Hz, lists of floats would be 40 MB.
    observe: array[float] = field(default_factory=lambda: array("d"))
    infer: array[float] = field(default_factory=lambda: array("d"))
    command: array[float] = field(default_factory=lambda: array("d"))
    jitter: array[float] = field(default_factory=lambda: array("d"))
    ticks: int = 0
    missed: int = 0
    chunks: int = 0
    invalid: int = 0
    holds: int = 0
    faults: int = 0
    cameras: CameraTally = field(default_factory=CameraTally)

    def stats(
        self, end: tuple[str, Outcome], seconds: float, stale: float, clamps: Mapping[str, int], events: EventLog
    ) -> ControlStats:
        """The statistics; `end` is the reason and the outcome, `stale` and `clamps` as in ControlStats."""
        return ControlStats(
            reason=end[0],
            outcome=end[1],
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
            cameras=self.cameras.stats(),
            events=tuple(events.entries),
            events_left_out=events.left_out,
        )
