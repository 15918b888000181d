"""The tabletop SO-101 as a Gymnasium environment.

| part                    | value                                                                 |
|-------------------------|-----------------------------------------------------------------------|
| observation             | images {front, wrist: (h, w, 3) uint8}, state (6,) [rad], instruction |
| action                  | (6,) absolute joint targets [rad], 10 a second                        |
| reward                  | 1 at the step that meets the task, else 0                             |
| info                    | success, is_success, instruction, target, wrong_object, seed, points  |
"""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import mujoco
import numpy as np
from gymnasium import spaces
from jaxtyping import Float, UInt8

from vla.embodiment import Embodiment
from vla.envs.arm import JOINTS
from vla.envs.ik import ArmIK, azimuth
from vla.envs.instructions import CHARACTERS, MAX_LENGTH, check_phrasing, instruction
from vla.envs.objects import GoalSpec
from vla.envs.randomize import Looks, jitter_sizes
from vla.envs.scene import CAMERAS, TableScene
from vla.envs.tasks import get_task
from vla.envs.truth import points
from vla.errors import InputError
from vla.types import Observation

CONTROL_HZ = 10.0
HOME_POSITION, HOME_PITCH, HOME_GRIPPER = (0.185, 0.0, 0.115), 1.15, 0.5
"""Where the fingertips wait [m], how steeply [rad], and the gripper's opening [rad]."""
HOLD_STEPS = 3
"""Consecutive steps for which the task must be met."""


class SO101Env(gym.Env[dict[str, Any], Float[np.ndarray, "a"]]):
    """One language task on the table. A seed fixes the episode to the bit.

    `reset(options=...)` takes `{"target": i}` (name object i) or `{"swap": True}` (name another object than the
    seed alone would): the scene stays that of the seed, and success is judged by the named object. `{"perturb":
    True}` starts the arm from a random pose. Raises InputError for an unknown task, phrasing set or arm model, and
    for an action that is not finite.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": int(CONTROL_HZ)}

    def __init__(
        self,
        task: str = "pick",
        image_size: int = 96,
        randomize: bool = True,
        phrasing: str = "train",
        model: str = "light",
        render_mode: str | None = "rgb_array",
    ) -> None:
        check_phrasing(phrasing)
        self.task = get_task(task)
        self.randomize, self.phrasing, self.render_mode = randomize, phrasing, render_mode
        self.scene = TableScene(image_size, model)
        self.ik = ArmIK(self.scene.model)
        self.target, self.goal = 0, 0
        self._looks = Looks(self.scene)
        self._home = home_joints(self.ik)
        self._instruction, self._seed = "", 0
        self._met, self._wrong = 0, False
        self.embodiment = so101_embodiment(self.scene.model)
        self._substeps = round(1 / CONTROL_HZ / self.scene.model.opt.timestep)
        low, high = np.array(self.embodiment.action_low), np.array(self.embodiment.action_high)
        self.action_space = spaces.Box(low.astype(np.float32), high.astype(np.float32), dtype=np.float32)
        image = spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
        # A joint may be pressed a little past its limit.
        state = spaces.Box((low - 0.5).astype(np.float32), (high + 0.5).astype(np.float32), dtype=np.float32)
        self.observation_space = spaces.Dict(
            images=spaces.Dict({camera: image for camera in CAMERAS}),
            state=state,
            instruction=spaces.Text(MAX_LENGTH, charset=CHARACTERS),
        )

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        super().reset(seed=seed)
        self._seed = int(self.np_random.integers(2**31)) if seed is None else int(seed)
        # Streams of their own: neither the start pose nor the naming of an object changes the scene.
        scene_rng, word_rng, start_rng = (np.random.default_rng([self._seed, i]) for i in range(3))
        options = options or {}
        self._lay_out(scene_rng)
        self._name_target(word_rng, options)
        self._pose_arm(start_rng, bool(options.get("perturb", False)))
        self._met, self._wrong = 0, False
        mujoco.mj_forward(self.scene.model, self.scene.data)
        return self._observe(), self._info()

    def _lay_out(self, rng: np.random.Generator) -> None:
        objects, goals = self.task.layout(rng)
        self.scene.reset()
        self.scene.place(jitter_sizes(objects, rng) if self.randomize else objects, goals)
        self._looks.apply(rng if self.randomize else None)

    def _name_target(self, rng: np.random.Generator, options: dict[str, Any]) -> None:
        objects, goals = self.scene.objects, self.scene.goals
        named, other = int(rng.integers(len(objects))), int(rng.integers(1, len(objects)))
        self.goal = int(rng.integers(max(len(goals), 1)))
        if options.get("swap"):
            named = (named + other) % len(objects)
        self.target = int(options.get("target", named))
        if not 0 <= self.target < len(objects):
            raise InputError(f"target {self.target} names no object: this scene has {len(objects)}")
        self._instruction = instruction(self.task.name, objects[self.target], self.target_goal, self.phrasing, rng)

    def _pose_arm(self, rng: np.random.Generator, perturb: bool) -> None:
        joints = self._home.copy()
        if perturb:
            position = np.array([rng.uniform(0.15, 0.28), rng.uniform(-0.14, 0.14), rng.uniform(0.07, 0.15)])
            arm, _ = self.ik.solve(position, rng.uniform(0.95, 1.25), azimuth(position) - np.pi / 2)
            joints = np.append(arm + rng.uniform(-0.1, 0.1, 5), rng.uniform(0.0, 0.9))
        elif self.randomize:
            joints += rng.uniform(-0.06, 0.06, 6)
        self.scene.data.qpos[:6] = joints
        self.scene.data.ctrl[:6] = joints

    @property
    def target_goal(self) -> GoalSpec | None:
        """Where the named object belongs; None for a task without goals."""
        return self.scene.goals[self.goal] if self.scene.goals else None

    def step(self, action: Float[np.ndarray, "a"]) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        action = np.asarray(action, dtype=np.float64)
        self.embodiment.check_action(action)
        data = self.scene.data
        start, goal = data.ctrl[:6].copy(), np.clip(action, self.embodiment.action_low, self.embodiment.action_high)
        for substep in range(1, self._substeps + 1):
            data.ctrl[:6] = start + (goal - start) * (substep / self._substeps)
            mujoco.mj_step(self.scene.model, data)
        # `mj_step` ends on new positions; the images need the kinematics that belong to them.
        mujoco.mj_forward(self.scene.model, data)
        self._judge()
        success = self._met >= HOLD_STEPS
        return self._observe(), float(success), success, False, self._info()

    def _judge(self) -> None:
        scene, done = self.scene, self.task.done
        self._met = self._met + 1 if done(scene, self.target, self.target_goal) else 0
        for index in range(len(scene.objects)):
            for goal in range(max(len(scene.goals), 1)):
                if (index, goal) != (self.target, self.goal):
                    self._wrong |= done(scene, index, scene.goals[goal] if scene.goals else None)

    def _observe(self) -> dict[str, Any]:
        return {
            "images": {camera: self.scene.render(camera) for camera in CAMERAS},
            "state": self.scene.data.qpos[:6].astype(np.float32),
            "instruction": self._instruction,
        }

    def _info(self) -> dict[str, Any]:
        success = self._met >= HOLD_STEPS
        return {
            "success": success,
            "is_success": success,
            "instruction": self._instruction,
            "target": self.scene.objects[self.target].name,
            "wrong_object": self._wrong,
            "seed": self._seed,
            "points": self._points(),
        }

    def _points(self) -> Float[np.ndarray, "p 2"]:
        """Where the named object, and its goal where there is one, are in each camera's image."""
        places = [self.scene.object_position(self.target)]
        if goal := self.target_goal:
            places.append(np.array([goal.x, goal.y, 0.0]))
        return points(self.scene, np.stack(places))

    @property
    def time(self) -> float:
        """Simulated time since the reset [s]."""
        return float(self.scene.data.time)

    def render(self) -> UInt8[np.ndarray, "h w 3"]:
        """The front camera's image."""
        return self.scene.render("front")

    def close(self) -> None:
        self.scene.close()


def home_joints(ik: ArmIK) -> Float[np.ndarray, "6"]:
    """The joints [rad] in which the arm waits."""
    arm, _ = ik.solve(np.array(HOME_POSITION), HOME_PITCH, -np.pi / 2)
    return np.append(arm, HOME_GRIPPER)


def so101_embodiment(model: mujoco.MjModel) -> Embodiment:
    """The interface of the simulated arm, its limits those of the model's actuators."""
    names = tuple(f"{joint} [rad]" for joint in JOINTS)
    low, high = model.actuator_ctrlrange[:6].T
    return Embodiment("so101", CAMERAS, names, names, tuple(low.tolist()), tuple(high.tolist()), CONTROL_HZ)


def to_observation(observation: dict[str, Any], time: float) -> Observation:
    """The environment's observation, seen at `time` [s], in the project's own type."""
    return Observation(observation["images"], observation["state"], observation["instruction"], time)
