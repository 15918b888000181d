"""The simulated tabletop as a robot in real time."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from types import TracebackType

import numpy as np
from jaxtyping import Float

from vla.embodiment import Embodiment
from vla.envs.make import make_env
from vla.envs.so101 import SO101Env
from vla.errors import InputError
from vla.robots.limits import Limits, gripper_box
from vla.types import Observation

BEHIND = 0.2
"""Largest backlog of simulated time [s] that is caught up; more is skipped."""


class SimRobot:
    """A simulated scene as a robot. Every read and command advances the simulation to the current time.

    `instruction` is the instruction of the scene, and `success` reports whether its task has been achieved.

    Args:
        task: A task on the table. None: pick.
        seed: Seed of the scene.
        velocity: Velocity limit of every joint [rad/s].
        acceleration: Acceleration limit of every joint [rad/s^2].
        workspace: As in `gripper_box`.

    Raises:
        InputError: for a task that is not on the table, and for invalid limits.
    """

    def __init__(
        self,
        *,
        task: str | None,
        seed: int,
        velocity: float,
        acceleration: float,
        workspace: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        task = task or "pick"
        env = make_env(task, phrasing="heldout", holdout=True, images=False).unwrapped
        if not isinstance(env, SO101Env):
            env.close()
            raise InputError(f"robot=sim is a task on the table, such as pick; {task} is none")
        self.task, self._env, self._seed = task, env, seed
        self.embodiment: Embodiment = env.embodiment
        joints = len(self.embodiment.action)
        self.limits = Limits((velocity,) * joints, (acceleration,) * joints, gripper_box(workspace))
        self.limits.check(self.embodiment)
        self.reset_scene(0)

    def reset_scene(self, seed_offset: int) -> None:
        """Sets up the scene of the seed plus `seed_offset`, with the arm at rest."""
        _, info = self._env.reset(seed=self._seed + seed_offset)
        self.instruction: str = info["instruction"]
        self.success = False
        self._targets = self._env.scene.data.qpos[: self._env.scene.joints].copy()
        self._until, self._ahead = time.monotonic(), 0.0

    @property
    def image_sizes(self) -> dict[str, tuple[int, int]]:
        """Height and width of each camera's images [pixels]."""
        size = self._env.scene.image_size
        return dict.fromkeys(self.embodiment.cameras, (size, size))

    def __enter__(self) -> SimRobot:
        self.reset_scene(0)
        self._env.capture()  # the first rendering is slow
        self._until, self._ahead = time.monotonic(), 0.0
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._env.close()

    def state(self) -> tuple[Float[np.ndarray, "s"], float]:
        """See `Robot`."""
        self._catch_up()
        return self._env.scene.data.qpos[: self._env.scene.joints].copy(), time.monotonic()

    def observe(self, instruction: str) -> Observation:
        """See `Robot`."""
        state, now = self.state()
        images = self._env.capture()
        return Observation(images, state, instruction, now, captured=dict.fromkeys(images, now))

    def command(self, action: Float[np.ndarray, "a"]) -> None:
        """See `Robot`."""
        self._catch_up()
        self._targets = action.copy()

    def hold(self, last: Float[np.ndarray, "a"]) -> None:
        """See `Robot`."""
        self.command(last)

    def disable_torque(self) -> None:
        """Holds the current position: simulated motors cannot disable torque."""
        self.command(self._env.scene.data.qpos[: self._env.scene.joints])

    def _catch_up(self) -> None:
        now = time.monotonic()
        self._ahead += min(now - self._until, BEHIND)
        self._until = now
        step = float(self._env.scene.model.opt.timestep)
        if self._ahead >= step:
            duration = int(self._ahead / step) * step
            self.success |= self._env.drive(self._targets, duration)
            self._ahead -= duration
