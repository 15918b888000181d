"""The policy that holds still: the floor that a learned one is held against."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from vla.embodiment import Embodiment
from vla.types import ActionChunk, Observation


class HoldPolicy:
    """Never has a chunk, so the caller holds the robot where it is."""

    def __init__(self, embodiment: Embodiment) -> None:
        self.embodiment = embodiment

    def reset(self) -> None:
        """Nothing to forget."""

    def predict(
        self, observation: Observation, *, prefix: Float[np.ndarray, "k a"] | None = None
    ) -> ActionChunk | None:
        return None
