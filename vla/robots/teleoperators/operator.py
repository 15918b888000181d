"""An operator in place of a policy: the control loop asks for the target, and keeps the arm within its limits."""

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
from vla.types import ActionChunk, Observation

if TYPE_CHECKING:
    from vla.kinematics.solver import KinematicSolver

FAULTS = 10
"""Times one after the other that the device does not answer; then the run is to end."""
JOGS = 10.0
"""Commands of a device that are carried out a second, at most; a faster loop deals each out over several steps."""
LASTS = 1.0
"""[s] for which a target is stood by while the next does not come."""


class Operator:
    """What `device` says of the arm, as chunks that stay at one target, asked anew at each step.

    Jogs move the fingertips by `solver`, from where the arm is measured; until the first one, and while the device
    fails, there is no chunk, and the arm holds. `report` gets the reasons why jogs do not move the arm (CartesianJog).
    `said` is what ends the run: an Event's value or a fault.
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
        self.said: str | None = None
        self._jogging: CartesianJog | None = None
        self._failed = self._left = 0
        self._part = Jog()

    def predict(
        self, observation: Observation, *, prefix: Float[np.ndarray, "k a"] | None = None
    ) -> ActionChunk | None:
        if self.said is not None:
            return None
        try:
            jog = self._read()
        except (RobotFault, InputError) as error:
            self._failed += 1
            if self._failed > FAULTS or not getattr(error, "transient", False):
                self.said = str(error)
            return None
        self._failed = 0
        self.said = jog.event and jog.event.value
        if jog.joints is not None:
            return self._stay(np.array(jog.joints), observation.time)
        if self._solver is None or (self._jogging is None and not jog.moves):
            return None
        if self._jogging is None:
            self._jogging = CartesianJog(self._solver, self.embodiment, observation.state, self._report)
        return self._stay(self._jogging.act(jog, observation.state), observation.time)

    def _read(self) -> Jog:
        """The device's next command, or the next part of its last."""
        if self._left:
            self._left -= 1
            return self._part
        jog = self._device.read()
        if self._steps > 1:
            x, y, z = (part / self._steps for part in jog.delta)
            self._part, self._left = Jog((x, y, z), jog.turn / self._steps, jog.close), self._steps - 1
            jog = replace(jog, delta=self._part.delta, turn=self._part.turn)
        return jog

    def _stay(self, target: Float[np.ndarray, "a"], time: float) -> ActionChunk:
        hz = self.embodiment.control_hz
        return ActionChunk(np.repeat(target[None], math.ceil(LASTS * hz) + 1, axis=0), time, 1 / hz)
