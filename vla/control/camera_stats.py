"""Age, repetition and loss of the camera images in a run."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field

import numpy as np

from vla.common.percentiles import Spread
from vla.types import Observation


@dataclass(frozen=True)
class CameraStats:
    """Statistics of one camera over the observations of a run."""

    age: Spread
    """Age of an image when it was observed [s]."""
    repeated: int
    """Number of observations with the same image as the previous one."""
    dropped: int
    """Number of missing images, estimated from the median interval."""


@dataclass
class CameraTally:
    """Collects the capture times of the observations (`Observation.captured`)."""

    _ages: dict[str, array[float]] = field(default_factory=dict)
    _times: dict[str, array[float]] = field(default_factory=dict)

    def add(self, observation: Observation, now: float) -> None:
        """Adds the capture times of an observation made at `now` [s]."""
        for camera, captured in observation.captured.items():
            self._ages.setdefault(camera, array("d")).append(now - captured)
            self._times.setdefault(camera, array("d")).append(captured)

    def stats(self) -> dict[str, CameraStats]:
        """The statistics by camera."""
        return {camera: self._of(camera) for camera in self._times}

    def _of(self, camera: str) -> CameraStats:
        gaps = np.diff(self._times[camera])
        fresh = gaps[gaps > 0]
        missing = np.round(fresh / np.median(fresh)) - 1 if len(fresh) else fresh
        return CameraStats(Spread.of(self._ages[camera]), int((gaps <= 0).sum()), int(missing.clip(min=0).sum()))
