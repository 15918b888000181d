"""What a run of the control loop came to."""

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
"""The reason of a run that a simulated scene ends."""


@dataclass(frozen=True)
class ControlStats:
    """Counts are of ticks unless they say otherwise. `to_dict` is made of JSON's types."""

    reason: str
    """Why it ended: "done" where its time was over."""
    outcome: Outcome
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
    cameras: Mapping[str, CameraStats]
    """By name, where the robot says when its images were captured."""
    events: Sequence[Event]
    events_left_out: int
    """Those beyond `vla.control.events.MOST`."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class Tally:
    """What a run counts as it goes on."""

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
        """`end` is the reason and the outcome; `stale` and `clamps` as in ControlStats."""
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
