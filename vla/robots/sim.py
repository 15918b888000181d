"""The simulated tabletop in wall-clock time."""

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
"""[s] that the simulation makes up for at once, and no more."""


class SimRobot:
    """The scene of `seed` of a task (None: pick) as a robot. Whenever it is read or told something, the simulation
    catches up with the clock.

    `instruction` is what the scene asks for, and `success` whether that was done. `velocity` [rad/s] and `acceleration`
    [rad/s^2] are limits of every joint, `workspace` is `gripper_box`'s. Raises InputError for a task that is not on our
    table, and for limits that are none.
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
        self.lay(0)

    def lay(self, further: int) -> None:
        """Lays the scene that is so many seeds after the first, the arm at rest in it."""
        _, info = self._env.reset(seed=self._seed + further)
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
        self.lay(0)
        self._env.capture()  # the first picture takes long
        self._until, self._ahead = time.monotonic(), 0.0
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._env.close()

    def state(self) -> tuple[Float[np.ndarray, "s"], float]:
        self._catch_up()
        return self._env.scene.data.qpos[: self._env.scene.joints].copy(), time.monotonic()

    def observe(self, instruction: str) -> Observation:
        state, now = self.state()
        images = self._env.capture()
        return Observation(images, state, instruction, now, captured=dict.fromkeys(images, now))

    def command(self, action: Float[np.ndarray, "a"]) -> None:
        self._catch_up()
        self._targets = action.copy()

    def hold(self, last: Float[np.ndarray, "a"]) -> None:
        self.command(last)

    def relax(self) -> None:
        """The simulated motors have no switch: they stay where they are."""
        self.command(self._env.scene.data.qpos[: self._env.scene.joints])

    def _catch_up(self) -> None:
        now = time.monotonic()
        self._ahead += min(now - self._until, BEHIND)
        self._until = now
        step = float(self._env.scene.model.opt.timestep)
        if self._ahead >= step:
            whole = int(self._ahead / step) * step
            self.success |= self._env.drive(self._targets, whole)
            self._ahead -= whole
