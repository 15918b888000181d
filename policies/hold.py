"""A policy that holds still: the lower baseline of an evaluation."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from vla.embodiment import Embodiment
from vla.types import ActionChunk, Observation


class HoldPolicy:
    """Never returns a chunk, so the caller holds the robot at its position."""

    def __init__(self, embodiment: Embodiment) -> None:
        self.embodiment = embodiment

    def reset(self) -> None:
        """Does nothing: there is no state."""

    def predict(
        self, observation: Observation, *, prefix: Float[np.ndarray, "k a"] | None = None
    ) -> ActionChunk | None:
        """Returns None."""
        return None
