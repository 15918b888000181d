"""What the control loop reports of each of its ticks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jaxtyping import Float

from vla.types import Observation

Source = Literal["chunk", "hold", "brake", "approach"]
"""What a tick's command came from: the policy's chunk; no action, so that the arm holds; the standstill at the end; the
way to the start, or home."""


@dataclass(frozen=True)
class Tick:
    """What happened in one tick. Times are the clock's, durations too [s]."""

    time: float
    scheduled: float
    state: Float[np.ndarray, "s"]
    """The last that was measured."""
    observation: Observation | None
    """What was seen in this tick, at the end of a step of the policy; the policy may have been asked with it."""
    desired: Float[np.ndarray, "a"] | None
    """What the policy wants, between its last action and its next; None to stand still."""
    sent: Float[np.ndarray, "a"] | None
    """The safe command; None where it did not reach the motors."""
    clamped: tuple[str, ...]
    """The limits that changed it."""
    source: Source
    observe: float | None
    infer: float | None
    """Of the answer that came in this tick, if one did."""
    command: float
    left: int = 0
    """Actions of the chunk in force that are still to be carried out."""
    temperatures: Mapping[str, float] = field(default_factory=dict)
    """The last that was read of each servo [degrees C]."""
