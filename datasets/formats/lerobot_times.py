"""The timestamps of LeRobot datasets: their unit, and the times of steps and of video frames."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, Int

from vla.common.plural import counted
from vla.datasets.formats.columns import TIME_UNITS, are_coarse, coarse_remark, time_unit

OFF_FRAME = 0.25
"""Maximum deviation of a timestamp from the time of its frame, in frames."""
LONGEST_VIDEO = 86400.0
"""Maximum time in a video [s]: larger timestamps are those of a clock."""


@dataclass(frozen=True)
class Clock:
    """The clock of a dataset with `fps` steps a second."""

    fps: float

    def seconds(self, stamps: Float[np.ndarray, "t"]) -> Float[np.ndarray, "t"]:
        """The timestamps of an episode [s], which some recorders write in another unit."""
        return stamps / TIME_UNITS[time_unit(stamps, self.fps)]

    def times(self, stamps: Float[np.ndarray, "t"]) -> Float[np.ndarray, "t"]:
        """The times [s] of an episode's steps: their timestamps, or multiples of the period if these are unusable."""
        seconds = self.seconds(stamps)
        return np.arange(len(stamps)) / self.fps if are_coarse(seconds, self.fps) else seconds

    def frame_times(self, times: Float[np.ndarray, "t"]) -> Float[np.ndarray, "t"]:
        """The times [s] of an episode's frames, relative to its first one.

        They are the times of the rows. If these do not match distinct frames, for example because of jitter, the frames
        are assigned to the rows in order.
        """
        return times if self.are_frames(times) else np.arange(len(times)) / self.fps

    def are_frames(self, times: Float[np.ndarray, "t"]) -> bool:
        """Whether times [s] in a video are close to those of distinct frames in ascending order."""
        positions = times * self.fps
        nearest = np.rint(positions)
        is_near = np.abs(positions - nearest).max(initial=0) <= OFF_FRAME and times.max(initial=0) < LONGEST_VIDEO
        return bool(is_near and (np.diff(nearest) > 0).all())


@dataclass
class ClockSurvey:
    """The timestamps of all episodes.

    Attributes:
        clock: The clock of the dataset.
        regular: Whether all timestamps are those of LeRobot (step / rate).
        off: The number of episodes with timestamps that do not match video frames.
        coarse: The number of those with unusable timestamps.
        units: The number of episodes with timestamps in another unit than seconds, by unit.
    """

    clock: Clock
    regular: bool = True
    off: int = 0
    coarse: int = 0
    units: Counter[str] = field(default_factory=Counter)

    def add(self, stamps: Float[np.ndarray, "t"], steps: Int[np.ndarray, "t"]) -> None:
        """Adds the timestamps of an episode, and the numbers of its steps."""
        fps, seconds = self.clock.fps, self.clock.seconds(stamps)
        self.units.update({time_unit(stamps, fps)} - {"s"})
        expected = (steps / fps).astype(np.float32)
        self.regular = self.regular and np.array_equal(self.clock.times(stamps).astype(np.float32), expected)
        self.off += not self.clock.are_frames(seconds)
        self.coarse += are_coarse(seconds, fps)

    def remarks(self, has_videos: bool) -> list[str]:
        """Remarks on units, on unusable timestamps and, for videos, on frames that are assigned in order."""
        fps = self.clock.fps
        found = [f"the timestamps of {counted(count, 'episode')} are in {unit}" for unit, count in self.units.items()]
        if self.coarse:
            found.append(coarse_remark(self.coarse, fps))
        if self.off > self.coarse and has_videos:
            found.append(
                f"the timestamps of {self.off - self.coarse} episodes are not those of video frames at {fps:g} Hz: "
                "their frames are assigned to the rows in order"
            )
        return found
