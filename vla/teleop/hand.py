"""The simulated hand under an operator: from jogs to joint targets."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from vla.envs.expert import comfortable_pitch, step_towards
from vla.envs.primitives import CLOSED, OPEN, Command, present_yaw, radial_yaw, tip_of
from vla.envs.so101 import SO101Env
from vla.teleop.protocol import Jog

LOWEST, OUT_OF_REACH = 0.01, 0.005
"""[m]. The fingertips stay this far above the table; a place that the arm misses by more than this is out of reach."""
MOST = np.pi / 2
"""[rad] that the jaws turn away from lying across the arm's reach."""


class Hand:
    """Keeps where the fingertips of a one-armed environment should be, from where they are when it is made.

    What is kept is the place asked for, not the one reached: the arm's lag and sag do not add up.
    """

    def __init__(self, env: SO101Env) -> None:
        self._env = env
        self.position = tip_of(env.scene)
        turn = present_yaw(env.scene) - radial_yaw(self.position)
        self.turn = float(np.clip(turn, -MOST, MOST))
        self.gripper = float(env.scene.data.qpos[5])

    def act(self, jog: Jog) -> Float[np.ndarray, "6"]:
        """Absolute joint targets [rad], a limited step away. A step out of reach is left out."""
        env = self._env
        position = self.position + jog.delta
        position[2] = max(position[2], LOWEST)
        turn = float(np.clip(self.turn + jog.turn, -MOST, MOST))
        _, missed = env.ik.solve(position, comfortable_pitch(position), radial_yaw(position) + turn)
        if missed < OUT_OF_REACH:
            self.position, self.turn = position, turn
        if jog.close is not None:
            self.gripper = CLOSED if jog.close else OPEN
        command = Command(self.position, radial_yaw(self.position) + self.turn, self.gripper)
        target = step_towards(env.ik, env.scene, env.scene.arms[0], command)
        return np.clip(target, env.embodiment.action_low, env.embodiment.action_high)
