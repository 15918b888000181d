"""The record of one tick of the control loop."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from jaxtyping import Float

from vla.types import Observation

Source = Literal["chunk", "hold", "brake", "approach"]
"""Source of a tick's command: the policy's action chunk; holding without an action; braking at the end; the slow motion
to the start region or home."""


@dataclass(frozen=True)
class Tick:
    """Record of one tick. Times and durations are in [s] of the loop's clock."""

    time: float
    scheduled: float
    state: Float[np.ndarray, "s"]
    """The last measured state."""
    observation: Observation | None
    """The observation of this tick, at the end of a policy step."""
    desired: Float[np.ndarray, "a"] | None
    """The target, interpolated between the policy's actions; None to brake."""
    sent: Float[np.ndarray, "a"] | None
    """The command after the safety filter; None if it did not reach the motors."""
    clamped: tuple[str, ...]
    """The limits that changed the target."""
    source: Source
    observe: float | None
    """Duration of the observation."""
    infer: float | None
    """Inference delay of the answer received in this tick, if any."""
    command: float
    """Duration of sending the command."""
    left: int = 0
    """Number of actions in the action queue."""
    temperatures: Mapping[str, float] = field(default_factory=dict)
    """Last measured temperature of each servo [degrees C]."""
