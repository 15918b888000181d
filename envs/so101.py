"""The tabletop SO-101 as a Gymnasium environment.

| part                    | value                                                                 |
|-------------------------|-----------------------------------------------------------------------|
| observation             | images {front, wrist: (h, w, 3) uint8}, state (6,) [rad], instruction |
| action                  | (6,) absolute joint targets [rad], 10 a second                        |
| reward                  | 1 at the step that meets the task, else 0                             |
| info                    | success, is_success, instruction, target, wrong_object, seed, points  |

With two arms state and action are (12,), the left arm's joints first, and the wrist cameras left_wrist, right_wrist.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, override

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from jaxtyping import Float, UInt8

from vla.common.mujoco_gl import mujoco
from vla.embodiment import Embodiment
from vla.envs import CONTROL_HZ
from vla.envs.arm import JOINTS, SERVO_ACCELERATION, SERVO_SPEED, arm_spec
from vla.envs.axes import arrange, check_axes, distractors, stream
from vla.envs.ik import ArmIK, azimuth
from vla.envs.instructions import CHARACTERS, MAX_LENGTH, check_phrasing, instruction
from vla.envs.objects import Layout
from vla.envs.randomize import DomainRandomizer, jitter_sizes
from vla.envs.scene import TableScene
from vla.envs.tasks import get_task
from vla.envs.truth import points
from vla.errors import InputError
from vla.types import Observation

HOME_POSITION, HOME_PITCH, HOME_GRIPPER = (0.185, 0.0, 0.115), 1.15, 0.5
"""The initial position of the fingertips [m], their pitch [rad], and the gripper joint [rad]."""
HOLD_STEPS = 3
"""The number of consecutive steps for which the task must be met."""


class SO101Env(gym.Env[dict[str, Any], Float[np.ndarray, "a"]]):
    """A language-conditioned task on the table. Episodes are bit-identical for a seed.

    `reset(options=...)` accepts `{"target": i}` (the instruction names object i) or `{"swap": True}` (it names another
    object than by default). The scene does not change, and success is judged by the instruction. `{"perturb": True}`
    starts the arm from a random pose.

    Args:
        task: The task.
        image_size: The size of images [px].
        randomize: Whether appearance and initial pose are randomized.
        phrasing: The set of phrasings.
        model: The arm model.
        render_mode: As in Gymnasium.
        axes: The generalization axes (`vla.envs.axes`).
        holdout: Whether held-out pairs of colour and shape are excluded, as in training data.
        images: Whether images are rendered; otherwise they are black.

    Raises:
        InputError: the task, phrasing set, axis or arm model is unknown; in `step`, an action is not finite.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": int(CONTROL_HZ)}
    servo = SERVO_SPEED, SERVO_ACCELERATION

    def __init__(
        self,
        task: str = "pick",
        image_size: int = 96,
        randomize: bool = True,
        phrasing: str = "train",
        model: str = "light",
        render_mode: str | None = "rgb_array",
        axes: Sequence[str] = (),
        holdout: bool = False,
        images: bool = True,
    ) -> None:
        check_phrasing(phrasing)
        self.task, self.axes, self.holdout = get_task(task), frozenset(axes), holdout
        check_axes(axes, self.task)
        self.randomize, self.render_mode = randomize, render_mode
        self._templates = self.task.templates["heldout" if "phrasing" in axes else phrasing]
        self.scene = TableScene(image_size, model, replace(self.task.furniture, distractors="distractors" in axes))
        self.ik = ArmIK(arm_spec(model).compile())
        self.target, self.goal = 0, 0
        self._randomizer = DomainRandomizer(self.scene)
        self._home = home_joints(self.ik)
        self._instruction, self._target_name, self._seed = "", "", 0
        self._met, self._wrong, self._driven = 0, False, 0
        self.draws, self._black_image = images, np.zeros((image_size, image_size, 3), np.uint8)
        self.embodiment = so101_embodiment(self.scene)
        self._substeps = round(1 / CONTROL_HZ / self.scene.model.opt.timestep)
        low, high = np.array(self.embodiment.action_low), np.array(self.embodiment.action_high)
        self.action_space = spaces.Box(low.astype(np.float32), high.astype(np.float32), dtype=np.float32)
        image = spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
        # Forces may move a joint slightly beyond its limit.
        state = spaces.Box((low - 0.5).astype(np.float32), (high + 0.5).astype(np.float32), dtype=np.float32)
        self.observation_space = spaces.Dict(
            images=spaces.Dict({camera: image for camera in self.scene.cameras}),
            state=state,
            instruction=spaces.Text(MAX_LENGTH, charset=CHARACTERS),
        )

    @override
    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        super().reset(seed=seed)
        self._seed = int(self.np_random.integers(2**31)) if seed is None else int(seed)
        # Separate random streams: neither the initial pose nor the instruction changes the scene.
        scene_rng, word_rng, start_rng = (np.random.default_rng([self._seed, i]) for i in range(3))
        options = options or {}
        layout = self.task.layout(scene_rng)
        self._choose(layout, word_rng, options)
        layout = arrange(self.task, layout, self.target, self.goal, self.axes, self._seed, holdout=self.holdout)
        self._lay_out(layout, scene_rng)
        words = self.task.words(self.scene, self.target, self.goal)
        self._target_name = next(iter(words.values()))[0]
        self._instruction = instruction(self._templates, words, word_rng)
        self._pose_arms(start_rng, bool(options.get("perturb", False)))
        self._met, self._wrong, self._driven = 0, False, 0
        mujoco.mj_forward(self.scene.model, self.scene.data)
        return self._observe(), self._info()

    def _choose(self, layout: Layout, rng: np.random.Generator, options: dict[str, Any]) -> None:
        targets, goals = self.task.choices(layout)
        named, other = int(rng.integers(targets)), int(rng.integers(1, targets))
        self.goal = int(rng.integers(goals))
        if options.get("swap"):
            named = (named + other) % targets
        self.target = int(options.get("target", named))
        if not 0 <= self.target < targets:
            raise InputError(f"there is no target {self.target}: this scene has {targets}")

    def _lay_out(self, layout: Layout, rng: np.random.Generator) -> None:
        objects = jitter_sizes(layout.objects, rng) if self.randomize else layout.objects
        odd = distractors(self.task, layout, stream(self._seed, "distractors")) if "distractors" in self.axes else ()
        self.scene.reset()
        self.scene.place(objects, layout.goals, layout.fixtures, odd)
        self._randomizer.apply(rng if self.randomize else None)
        if "light" in self.axes:
            self._randomizer.relight(stream(self._seed, "light"))
        if "camera" in self.axes:
            self._randomizer.move_cameras(stream(self._seed, "camera"))

    def _pose_arms(self, rng: np.random.Generator, perturb: bool) -> None:
        for arm in self.scene.arms:
            joints = self._home.copy()
            if perturb:
                position = np.array([rng.uniform(0.15, 0.28), rng.uniform(-0.14, 0.14), rng.uniform(0.07, 0.15)])
                solved, _ = self.ik.solve(position, rng.uniform(0.95, 1.25), azimuth(position) - np.pi / 2)
                joints = np.append(solved + rng.uniform(-0.1, 0.1, 5), rng.uniform(0.0, 0.9))
            elif self.randomize:
                joints += rng.uniform(-0.06, 0.06, 6)
            self.scene.data.qpos[arm.joints] = self.scene.data.ctrl[arm.joints] = joints

    @override
    def step(self, action: Float[np.ndarray, "a"]) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        action = np.asarray(action, dtype=np.float64)
        self.embodiment.check_action(action)
        data = self.scene.data
        start, goal = data.ctrl.copy(), np.clip(action, self.embodiment.action_low, self.embodiment.action_high)
        for substep in range(1, self._substeps + 1):
            data.ctrl[:] = start + (goal - start) * (substep / self._substeps)
            mujoco.mj_step(self.scene.model, data)
        # `mj_step` ends with new positions; rendering needs their kinematics.
        mujoco.mj_forward(self.scene.model, data)
        self._judge()
        success = self._met >= HOLD_STEPS
        return self._observe(), float(success), success, False, self._info()

    def drive(self, targets: Float[np.ndarray, "a"], seconds: float) -> bool:
        """Simulates `seconds` [s] with constant joint targets [rad], for control loops with their own rate.

        Returns:
            Whether the task is met, judged as in `step` and at the same rate.
        """
        data, timestep = self.scene.data, self.scene.model.opt.timestep
        data.ctrl[:] = np.clip(targets, self.embodiment.action_low, self.embodiment.action_high)
        for _ in range(round(seconds / timestep)):
            mujoco.mj_step(self.scene.model, data)
            self._driven += 1
            if self._driven % self._substeps == 0:
                mujoco.mj_forward(self.scene.model, data)
                self._judge()
        mujoco.mj_forward(self.scene.model, data)
        return self._met >= HOLD_STEPS

    def _judge(self) -> None:
        which = self.scene, self.target, self.goal
        self._met = self._met + 1 if self.task.done(*which) else 0
        self._wrong |= self.task.wrong(*which)

    def _observe(self) -> dict[str, Any]:
        scene = self.scene
        return {
            "images": self.capture() if self.draws else dict.fromkeys(scene.cameras, self._black_image),
            "state": scene.data.qpos[: scene.joints].astype(np.float32),
            "instruction": self._instruction,
        }

    def capture(self) -> dict[str, UInt8[np.ndarray, "h w 3"]]:
        """The cameras' images of the present scene, also with `images=False`."""
        return {camera: self.scene.render(camera) for camera in self.scene.cameras}

    def _info(self) -> dict[str, Any]:
        success = self._met >= HOLD_STEPS
        return {
            "success": success,
            "is_success": success,
            "instruction": self._instruction,
            "target": self._target_name,
            "wrong_object": self._wrong,
            "seed": self._seed,
            "points": points(self.scene, np.stack(self.task.points(self.scene, self.target, self.goal))),
        }

    @property
    def time(self) -> float:
        """Simulated time since the reset [s]."""
        return float(self.scene.data.time)

    def render(self) -> UInt8[np.ndarray, "h w 3"]:
        """The front camera's image."""
        return self.scene.render("front")

    @override
    def close(self) -> None:
        self.scene.close()


def home_joints(ik: ArmIK) -> Float[np.ndarray, "6"]:
    """The initial joint positions of the arm [rad]."""
    arm, _ = ik.solve(np.array(HOME_POSITION), HOME_PITCH, -np.pi / 2)
    return np.append(arm, HOME_GRIPPER)


def so101_embodiment(scene: TableScene) -> Embodiment:
    """The embodiment of the simulated arms, with the limits of the model's actuators."""
    names = tuple(f"{arm.prefix}{joint} [rad]" for arm in scene.arms for joint in JOINTS)
    low, high = scene.model.actuator_ctrlrange.T
    name = "so101" if len(scene.arms) == 1 else "so101_pair"
    return Embodiment(
        name=name,
        cameras=scene.cameras,
        state=names,
        action=names,
        action_low=tuple(low.tolist()),
        action_high=tuple(high.tolist()),
        control_hz=CONTROL_HZ,
        action_mode=("absolute",) * len(names),
        grippers=tuple(f"{arm.prefix}gripper [rad]" for arm in scene.arms),
    )


def to_observation(observation: dict[str, Any], time: float) -> Observation:
    """Converts an observation of the environment at `time` [s] to `Observation`."""
    return Observation(observation["images"], observation["state"], observation["instruction"], time)
