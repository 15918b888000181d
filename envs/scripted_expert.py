"""Scripted experts: convert a task's plan for the present state to joint targets with a limited step."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
from jaxtyping import Float

from vla.envs.ik import ArmIK, radius
from vla.envs.primitives import Command
from vla.envs.scene import Arm, TableScene
from vla.envs.so101 import SO101Env
from vla.envs.suites.env import SuiteEnv, SuiteExpert

MAX_STEP, GRIPPER_STEP = 0.09, 0.25
"""The maximum change of a joint per action [rad]."""


class ScriptedExpert:
    """Acts in an SO101Env from privileged state."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        unwrapped = env.unwrapped
        assert isinstance(unwrapped, SO101Env)
        self._env = unwrapped

    def reset(self) -> None:
        """Does nothing: the expert has no state."""

    def act(self) -> Float[np.ndarray, "a"]:
        """The next absolute joint targets (a,) [rad], a limited step from the present joints."""
        env = self._env
        plan = env.task.plan(env.scene, env.target, env.goal)
        commands = (plan,) if isinstance(plan, Command) else plan
        pairs = zip(env.scene.arms, commands, strict=True)
        targets = [step_towards(env.ik, env.scene, arm, command) for arm, command in pairs]
        return np.clip(np.concatenate(targets), env.embodiment.action_low, env.embodiment.action_high)


def step_towards(ik: ArmIK, scene: TableScene, arm: Arm, command: Command) -> Float[np.ndarray, "6"]:
    """Joint targets [rad] towards a command, a limited step from the arm's present joints."""
    position = command.position - (0.0, arm.base_y, 0.0)
    joint_targets, _ = ik.solve(position, comfortable_pitch(position), command.closing_yaw)
    joints = scene.data.qpos[arm.joints]
    step = joint_targets - joints[:5]
    # One scale for all five joints keeps the path straight in joint space.
    step *= min(1.0, MAX_STEP / max(float(np.abs(step).max()), 1e-9))
    gripper = np.clip(command.gripper - joints[5], -GRIPPER_STEP, GRIPPER_STEP)
    return joints + np.append(step, gripper)


def expert_of(env: gym.Env[Any, Any]) -> ScriptedExpert | SuiteExpert:
    """The expert of an environment. Raises InputError if there is none."""
    unwrapped = env.unwrapped
    return SuiteExpert(unwrapped) if isinstance(unwrapped, SuiteEnv) else ScriptedExpert(env)


def comfortable_pitch(position: Float[np.ndarray, "3"]) -> float:
    """The pitch of the fingers at a position [rad]; smaller at far or high positions, where the arm is extended."""
    return float(1.22 - 1.6 * max(radius(position) - 0.24, 0.0) - 1.5 * max(position[2] - 0.09, 0.0))
