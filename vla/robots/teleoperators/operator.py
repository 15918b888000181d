"""An operator in place of a policy, so that the control loop and its safety filter also apply to teleoperation."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from vla.embodiment import Embodiment
from vla.errors import InputError
from vla.robots.robot import RobotFault
from vla.robots.teleoperators.cartesian_jog import CartesianJog
from vla.robots.teleoperators.teleoperator import Jog, Teleop
from vla.types import ActionChunk, Observation, RTCPrefix

if TYPE_CHECKING:
    from vla.kinematics.solver import KinematicSolver

FAULTS = 10
"""Number of consecutive failures of the device after which the run ends."""
JOGS = 10.0
"""Largest rate of device commands [Hz]; a faster loop divides each command over several steps."""
LASTS = 1.0
"""Time [s] for which a target stays valid without a new one."""


class Operator:
    """Converts the commands of a device into action chunks that stay at one target, one chunk per step.

    Jogs move the fingertips from the measured pose. Until the first jog, and while the device fails, there is no chunk,
    and the arm holds. `end_reason` is set when the run must end: an Event's value, or a fault.

    Args:
        device: The teleoperation device.
        embodiment: The embodiment.
        solver: The kinematic solver for jogs; None for a device that gives joint targets.
        report: Called with the reason why a jog does not move the arm (CartesianJog).
    """

    def __init__(
        self,
        device: Teleop,
        embodiment: Embodiment,
        solver: KinematicSolver | None,
        report: Callable[[str], None],
    ) -> None:
        self.embodiment, self._device, self._solver, self._report = embodiment, device, solver, report
        self._steps = max(1, round(embodiment.control_hz / JOGS)) if solver is not None else 1
        self.reset()

    def reset(self) -> None:
        """Starts a new episode."""
        self.end_reason: str | None = None
        self._jogging: CartesianJog | None = None
        self._failed = self._left = 0
        self._fraction = Jog()

    def predict(self, observation: Observation, *, prefix: RTCPrefix | None = None) -> ActionChunk | None:
        """See `Policy.predict`; reads the device once."""
        if self.end_reason is not None:
            return None
        try:
            jog = self._read()
        except (RobotFault, InputError) as error:
            self._failed += 1
            if self._failed > FAULTS or not getattr(error, "transient", False):
                self.end_reason = str(error)
            return None
        self._failed = 0
        self.end_reason = jog.event and jog.event.value
        if jog.joints is not None:
            return self._stay(np.array(jog.joints), observation.time)
        if self._solver is None or (self._jogging is None and not jog.moves):
            return None
        if self._jogging is None:
            self._jogging = CartesianJog(self._solver, self.embodiment, observation.state, self._report)
        return self._stay(self._jogging.act(jog, observation.state), observation.time)

    def _read(self) -> Jog:
        """The device's next command, or the next fraction of its last one."""
        if self._left:
            self._left -= 1
            return self._fraction
        jog = self._device.read()
        if self._steps > 1:
            x, y, z = (value / self._steps for value in jog.delta)
            self._fraction, self._left = Jog((x, y, z), jog.turn / self._steps, jog.close), self._steps - 1
            jog = replace(jog, delta=self._fraction.delta, turn=self._fraction.turn)
        return jog

    def _stay(self, target: Float[np.ndarray, "a"], time: float) -> ActionChunk:
        hz = self.embodiment.control_hz
        return ActionChunk(np.repeat(target[None], math.ceil(LASTS * hz) + 1, axis=0), time, 1 / hz)
