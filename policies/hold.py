"""A policy that holds still: the lower baseline of an evaluation."""

from __future__ import annotations

from vla.embodiment import Embodiment
from vla.types import ActionChunk, Observation, RTCPrefix


class HoldPolicy:
    """Never returns a chunk, so the caller holds the robot at its position."""

    def __init__(self, embodiment: Embodiment) -> None:
        self.embodiment = embodiment

    def reset(self) -> None:
        """Does nothing: there is no state."""

    def predict(self, observation: Observation, *, prefix: RTCPrefix | None = None) -> ActionChunk | None:
        """Returns None."""
        return None
