"""Policies that output tool poses, on robots that take joint targets."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from arm_models import file_of
from ee_stores import in_degrees, moving, so101_body, store_of
from scripted_policy import RowByRow

from vla.control.adapt import adapt, adapted_line
from vla.control.inference import Request, predict
from vla.datasets.episodes import EpisodeStore
from vla.datasets.tools.derive import derive
from vla.embodiment import Embodiment, Rotation
from vla.errors import InputError
from vla.kinematics.tool_pose import ToolPose
from vla.policies.end_effector import LAG, PACE, BatchEndEffectorPolicy, EndEffectorPolicy
from vla.policies.policy import BatchPolicy, guides
from vla.types import ActionChunk, Episode, Observation, RTCPrefix

HORIZON = 6


class Playing:
    """Plays the actions of an episode from the step that the time of the observation is, and notes what it was told."""

    def __init__(self, episode: Episode) -> None:
        self.embodiment, self._episode = episode.embodiment, episode
        self.states: list[np.ndarray] = []
        self.prefixes: list[RTCPrefix | None] = []

    def reset(self) -> None:
        self.states, self.prefixes = [], []

    def predict(self, observation: Observation, *, prefix: RTCPrefix | None = None) -> ActionChunk | None:
        self.states.append(observation.state)
        self.prefixes.append(prefix)
        step = round(observation.time * self.embodiment.control_hz)
        return ActionChunk(self._episode.action[step : step + HORIZON].copy(), observation.time, 0.1)


class BatchPlaying(Playing, RowByRow):
    guides = True


def derived(tmp_path: Path, episode: Episode, **options: Any) -> Episode:
    """The episode with tool poses."""
    source = store_of(tmp_path / "joints.zarr", episode)
    made = {"actions": "ee", "model": "so101", "tool": "gripperframe"} | options
    derive(source, out=str(tmp_path / "ee.zarr"), **made)
    with EpisodeStore.open(tmp_path / "ee.zarr") as store:
        return store[0]


def seen(episode: Episode, step: int) -> Observation:
    images = {camera: frames[step] for camera, frames in episode.images.items()}
    return Observation(images, episode.state[step].astype(np.float32), "wave", step / episode.embodiment.control_hz)


@pytest.mark.parametrize("rotation", ["6d", "axis_angle", "quaternion", "euler_zyx"])
def test_poses_become_the_joints_that_they_were_made_of(tmp_path: Path, rotation: str) -> None:
    joints = moving(4, steps=16)
    tools = derived(tmp_path, joints, rotation=rotation)
    inner = Playing(tools)
    policy = adapt(inner, joints.embodiment, None, {})
    assert isinstance(policy, EndEffectorPolicy) and not isinstance(policy, BatchPolicy)
    assert policy.embodiment == joints.embodiment
    for step in (0, 5, 10):
        chunk = policy.predict(seen(joints, step))
        assert chunk is not None
        np.testing.assert_allclose(chunk.actions, joints.action[step : step + HORIZON], atol=2e-5)
        np.testing.assert_allclose(inner.states[-1], tools.state[step], atol=1e-6)


def test_a_prefix_of_joints_is_one_of_poses_to_the_policy(tmp_path: Path) -> None:
    joints = moving(5, steps=16)
    tools = derived(tmp_path, joints)
    inner = Playing(tools)
    policy = adapt(inner, joints.embodiment, None, {})
    chunk = policy.predict(seen(joints, 3), prefix=RTCPrefix(joints.action[3:5]))
    assert chunk is not None and inner.prefixes[0] is not None
    np.testing.assert_allclose(inner.prefixes[0].committed, tools.action[3:5], atol=1e-9)
    np.testing.assert_array_equal(chunk.actions[:2], joints.action[3:5])
    np.testing.assert_allclose(chunk.actions, joints.action[3 : 3 + HORIZON], atol=2e-5)


def test_policies_that_take_batches_still_do(tmp_path: Path) -> None:
    joints = moving(6, steps=16)
    tools = derived(tmp_path, joints)
    inner = BatchPlaying(tools)
    policy = adapt(inner, joints.embodiment, None, {})
    assert isinstance(policy, BatchEndEffectorPolicy) and isinstance(policy, BatchPolicy) and guides(policy)
    requests = [
        Request(seen(joints, i), RTCPrefix(joints.action[i : i + 2], joints.action[i + 2 : i + 4]), i) for i in (1, 7)
    ]
    chunks = predict(policy, requests)
    for chunk, step in zip(chunks, (1, 7), strict=True):
        assert chunk is not None
        np.testing.assert_allclose(chunk.actions, joints.action[step : step + HORIZON], atol=2e-5)
    assert inner.prefixes[1] is not None
    np.testing.assert_allclose(inner.prefixes[1].leftover, tools.action[9:11], atol=1e-9)


@pytest.mark.parametrize("frame", ["base", "tool"])
def test_steps_of_the_tool_add_up_to_its_poses(tmp_path: Path, frame: str) -> None:
    joints = moving(7, steps=10)
    tools = derived(tmp_path, joints, rotation="axis_angle")
    body = tools.embodiment
    assert body.kinematics is not None
    (turned,) = body.rotations
    modes = ("delta",) * 6 + ("absolute",)
    stepping = replace(body, action_mode=modes, rotations=(replace(turned, frame=frame),))
    pose = ToolPose.of(stepping, body.kinematics.tools[0])
    arm = adapt(Playing(tools), joints.embodiment, None, {})._arm  # type: ignore[attr-defined]
    steps = np.zeros_like(tools.action)
    steps[:, -1] = tools.action[:, -1]
    now = arm.measured(joints.state[:1])[0, 0]
    pose.write_actions(steps, arm.commanded(joints.action)[:, 0], now)
    assert np.abs(steps[1:, :3]).max() < 0.05
    policy = adapt(Playing(replace(tools, embodiment=stepping, action=steps)), joints.embodiment, None, {})
    chunk = policy.predict(seen(joints, 0))
    assert chunk is not None
    np.testing.assert_allclose(chunk.actions, joints.action[:HORIZON], atol=2e-5)


def test_no_joint_is_faster_than_it_may_be(tmp_path: Path) -> None:
    joints = moving(8, steps=16)
    tools = derived(tmp_path, joints)
    far = replace(tools, action=np.repeat(tools.action[-1:], len(tools.action), axis=0))
    velocity = (0.3,) * 6
    policy = adapt(Playing(far), joints.embodiment, velocity, {})
    chunk = policy.predict(seen(joints, 0))
    assert chunk is not None
    moved = np.abs(np.diff(np.concatenate([joints.state[:1, :5], chunk.actions[:, :5]]), axis=0)).max(axis=1)
    np.testing.assert_allclose(moved, PACE * 0.3 / 10, atol=1e-6)


def test_a_quick_robot_is_not_pulled_back_to_where_its_joints_are_behind(tmp_path: Path) -> None:
    quick = replace(so101_body(), control_hz=50.0)
    joints = moving(8, steps=16, body=quick)
    tools = derived(tmp_path, joints)
    policy = adapt(Playing(replace(tools, action=np.repeat(tools.action[-1:], 16, axis=0))), quick, (0.3,) * 6, {})
    chunk = policy.predict(seen(joints, 0))
    assert chunk is not None
    moved = np.abs(np.diff(np.concatenate([joints.state[:1, :5], chunk.actions[:, :5]]), axis=0)).max(axis=1)
    np.testing.assert_allclose(moved[:3], PACE * 0.3 * np.array([LAG, 1 / 50, 1 / 50]), atol=1e-6)
    continued = policy.predict(seen(joints, 0), prefix=RTCPrefix(chunk.actions[:1]))
    assert continued is not None
    np.testing.assert_allclose(continued.actions[1] - continued.actions[0], chunk.actions[1] - chunk.actions[0])


def test_a_robot_in_degrees_is_told_degrees(tmp_path: Path) -> None:
    joints = in_degrees(moving(9, steps=16))
    tools = derived(tmp_path, joints)
    policy = adapt(Playing(tools), joints.embodiment, (100.0,) * 6, {})
    chunk = policy.predict(seen(joints, 2))
    assert chunk is not None
    np.testing.assert_allclose(chunk.actions, joints.action[2 : 2 + HORIZON], atol=1e-3)


def franka_body() -> Embodiment:
    names = tuple(f"robot:panda0_joint{i} [rad]" for i in range(1, 8))
    low, high = (
        np.array([-2.9, -1.76, -2.9, -3.07, -2.9, -1.66, -2.9]),
        np.array([2.9, 1.76, 2.9, -0.4, 2.9, 2.11, 2.9]),
    )
    named = (*names, "hand [m]")
    return Embodiment("franka", ("front", "wrist"), named, named, (*low.tolist(), 0.0), (*high.tolist(), 0.04), 10.0)


def test_a_policy_without_joints_in_its_state_drives_another_arm(tmp_path: Path) -> None:
    tools = derived(tmp_path, moving(10, steps=16), keep_joints=False)
    body = franka_body()
    kitchen = "envs/assets/kitchen_franka/kitchen_assets/kitchen_env_model.xml"
    options = {
        "model": str(file_of("gymnasium_robotics", kitchen)),
        "tool": "end_effector",
        "components": {"gripper": {"component": "hand [m]", "scale": 0.02, "offset": 0.01}},
    }
    start = np.array([0.0, 0.0, 0.0, -2.0, 0.0, 0.5, 0.0, 0.02])
    arm = adapt(Playing(tools), body, None, options)
    assert isinstance(arm, EndEffectorPolicy)
    here = arm._arm.measured(start[None])[0, 0]
    # The path of the SO-101's tool, from where the hand of the other arm is.
    first = tools.action[0, :3].copy()
    shifted = tools.action.copy()
    shifted[:, :3] += here[:3] - first
    policy = adapt(Playing(replace(tools, action=shifted)), body, None, options)
    observation = Observation({c: np.zeros((4, 4, 3), np.uint8) for c in body.cameras}, start, "wave", 0.0)
    chunk = policy.predict(observation)
    assert chunk is not None and chunk.actions.shape == (HORIZON, 8)
    reached = arm._arm.commanded(chunk.actions)[:, 0]
    np.testing.assert_allclose(reached[:, :3], shifted[:HORIZON, :3], atol=1e-6)
    np.testing.assert_allclose(chunk.actions[:, -1], 0.01 + 0.02 * tools.action[:HORIZON, -1])


def test_a_policy_whose_data_name_no_tool_is_told_which_it_is(tmp_path: Path) -> None:
    joints = moving(11, steps=16)
    tools = derived(tmp_path, joints, keep_joints=False, rotation="euler_xyz")
    names = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
    turned = Rotation((3, 4, 5), "euler_xyz", (3, 4, 5))
    low, high = tools.embodiment.action_low, tools.embodiment.action_high
    body = Embodiment("widowx", tools.embodiment.cameras, names, names, low, high, 10.0, rotations=(turned,))
    state = np.concatenate([tools.state[:, 1:], tools.state[:, :1]], axis=1)
    inner = Playing(replace(tools, embodiment=body, state=state))
    with pytest.raises(InputError, match=r"set kinematics.model and kinematics.tool"):
        adapt(inner, joints.embodiment, None, {"model": "so101"})
    options = {"model": "so101", "tool": "gripperframe", "components": {"gripper": "gripper [rad]"}}
    policy = adapt(inner, joints.embodiment, None, options)
    chunk = policy.predict(seen(joints, 4))
    assert chunk is not None
    np.testing.assert_allclose(chunk.actions, joints.action[4 : 4 + HORIZON], atol=2e-5)
    np.testing.assert_allclose(inner.states[0], state[4], atol=1e-6)
    assert "gripperframe: x, y, z, roll, pitch, yaw" in str(adapted_line(policy))


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    joints = moving(12)
    tools = derived(tmp_path, joints)
    inner, body = Playing(tools), joints.embodiment
    assert adapted_line(Playing(joints)) is None
    own = Playing(joints)
    assert adapt(own, body, None, {"model": None}) is own
    for kinematics, words in (
        ({"model": "so101"}, "outputs this robot's actions already"),
        ({"tools": "gripperframe"}, "kinematics.tools"),
    ):
        with pytest.raises(InputError, match=words):
            adapt(own, body, None, kinematics)
    for kinematics, words in (
        ({"tool": "gripperframe"}, "kinematics.tool needs kinematics.model"),
        ({"model": "so101", "tool": ["gripperframe", "base"]}, "2 tools, the policy has 1"),
        ({"model": "so101", "tool": "gripper_frame"}, "gripperframe"),
        ({"components": {"claw": "gripper [rad]"}}, "the policy has no action claw"),
        ({"components": {"gripper [rad]": "claw"}}, "so101 has no action claw"),
    ):
        with pytest.raises(InputError, match=words):
            adapt(inner, body, None, kinematics)
    for other, words in (
        (replace(body, cameras=("top",)), "cameras"),
        (replace(body, control_hz=20.0), "20 Hz"),
        (replace(body, action_mode=("absolute",) * 5 + ("delta",)), "is absolute"),
    ):
        with pytest.raises(InputError, match=words):
            adapt(inner, other, None, {})
    lacking = Embodiment(
        "arm", body.cameras, body.state[1:], body.action[1:], body.action_low[1:], body.action_high[1:], 10.0
    )
    with pytest.raises(InputError, match="shoulder_pan"):
        adapt(inner, lacking, None, {})


def test_numbers_that_are_none_are_a_fault(tmp_path: Path) -> None:
    joints = moving(13)
    tools = derived(tmp_path, joints)
    bad = tools.action.copy()
    bad[2, 4] = np.nan
    policy = adapt(Playing(replace(tools, action=bad)), joints.embodiment, None, {})
    with pytest.raises(InputError, match="not finite"):
        policy.predict(seen(joints, 0))


def test_a_silent_policy_stays_silent(tmp_path: Path) -> None:
    from vla.policies.hold import HoldPolicy

    joints = moving(14)
    tools = derived(tmp_path, joints)
    assert adapt(HoldPolicy(tools.embodiment), joints.embodiment, None, {}).predict(seen(joints, 0)) is None
