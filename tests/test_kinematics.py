"""Forward kinematics against MuJoCo's own, inverse kinematics against forward kinematics."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import mujoco
import numpy as np
import pytest
from arm_models import URDF, file_of, franka
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import Float
from scipy.spatial.transform import Rotation

from vla.common.kinematic_chain import chain_joints, extract_chain
from vla.envs.robot_models import load_robot_model
from vla.errors import InputError
from vla.kinematics.solver import KinematicSolver

SO101 = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll")
DOWN = np.array([0.0, 0.1, 0.1, 1.2, -np.pi / 2])
"""Joints of the SO-101 with its fingers pointing down."""
UNIT = st.floats(0.0, 1.0)


@cache
def so101() -> KinematicSolver:
    return KinematicSolver(extract_chain(load_robot_model("so101"), ["gripperframe"]), ["gripperframe"])


@cache
def seven_joints() -> KinematicSolver:
    return KinematicSolver(extract_chain(franka(), ["end_effector"]), ["end_effector"])


@cache
def two_arms() -> KinematicSolver:
    tips = ["left_gripperframe", "right_gripperframe"]
    return KinematicSolver(extract_chain(load_robot_model("so101_pair"), tips), tips)


def turned(one: Float[np.ndarray, "7"], other: Float[np.ndarray, "7"]) -> float:
    """The angle [rad] between two poses."""
    rotations = [Rotation.from_quat(np.roll(pose[3:], -1)) for pose in (one, other)]
    return float((rotations[0].inv() * rotations[1]).magnitude())


def assert_as_mujoco(model: mujoco.MjModel, frame: str, is_site: bool, seed: int = 0) -> None:
    solver, data = KinematicSolver(extract_chain(model, [frame]), [frame]), mujoco.MjData(model)
    rng = np.random.default_rng(seed)
    for _ in range(20):
        joints = rng.uniform(solver.low, solver.high)
        data.qpos[:] = model.qpos0
        for name, value in zip(solver.joints, joints, strict=True):
            data.joint(name).qpos = value
        mujoco.mj_kinematics(model, data)
        place = data.site(frame) if is_site else data.body(frame)
        pose = solver.forward(joints)[0]
        np.testing.assert_allclose(pose[:3], place.xpos, atol=1e-12)
        matrix = Rotation.from_quat(np.roll(pose[3:], -1)).as_matrix()
        np.testing.assert_allclose(matrix, place.xmat.reshape(3, 3), atol=1e-9)


def test_poses_are_those_of_mujoco(tmp_path: Path) -> None:
    assert_as_mujoco(load_robot_model("so101"), "gripperframe", True)
    assert_as_mujoco(load_robot_model("so101_pair"), "right_gripperframe", True)
    (tmp_path / "arm.urdf").write_text(URDF)
    assert_as_mujoco(load_robot_model(str(tmp_path / "arm.urdf")), "tip", False)


def test_poses_of_other_packages_arms_are_those_of_mujoco() -> None:
    assert_as_mujoco(franka(), "end_effector", True)
    urdf = load_robot_model(str(file_of("so101_nexus", "assets/SO101/so101_new_calib.urdf")))
    assert_as_mujoco(urdf, "gripper_frame_link", False)
    assert chain_joints(extract_chain(urdf, ["gripper_frame_link"])) == SO101


def test_a_joint_that_does_not_start_at_zero_keeps_its_zero() -> None:
    model = mujoco.MjModel.from_xml_string(
        "<mujoco><worldbody><body pos='0 0 1' euler='10 20 30'><joint name='a' axis='0 1 0' ref='40' range='-90 90'/>"
        "<geom size='.1' pos='.2 0 0'/><body pos='.1 0 .2'><joint name='b' axis='1 0 0' pos='0 0.1 0' range='-90 90'/>"
        "<geom size='.1'/><site name='tip' pos='.3 .1 0' euler='5 6 7'/></body></body></worldbody></mujoco>"
    )
    assert_as_mujoco(model, "tip", True)


@settings(max_examples=30, deadline=None)
@given(st.lists(UNIT, min_size=5, max_size=5), st.lists(UNIT, min_size=5, max_size=5))
def test_five_joints_reach_any_pose_that_they_can_have(goal: list[float], start: list[float]) -> None:
    solver = so101()
    goals, starts = (solver.low + np.array(part) * (solver.high - solver.low) for part in (goal, start))
    poses = solver.forward(goals)
    found = solver.inverse(poses, starts)
    assert np.linalg.norm(solver.forward(found)[0, :3] - poses[0, :3]) < 1e-4
    assert (found >= solver.low - 1e-9).all() and (found <= solver.high + 1e-9).all()


@settings(max_examples=20, deadline=None)
@given(st.lists(UNIT, min_size=7, max_size=7), st.lists(st.floats(-0.3, 0.3), min_size=7, max_size=7))
def test_seven_joints_reach_a_pose_and_its_orientation(start: list[float], apart: list[float]) -> None:
    solver = seven_joints()
    starts = solver.low + np.array(start) * (solver.high - solver.low)
    poses = solver.forward(np.clip(starts + apart, solver.low, solver.high))
    reached = solver.forward(solver.inverse(poses, starts))[0]
    assert np.linalg.norm(reached[:3] - poses[0, :3]) < 1e-4
    assert turned(reached, poses[0]) < 1e-2


def test_a_position_is_met_where_the_orientation_cannot_be() -> None:
    solver = so101()
    pose = solver.forward(DOWN)[0]
    # A quarter of a turn about the line to the shoulder: the arm has no joint for that.
    rolled = Rotation.from_euler("x", np.pi / 4) * Rotation.from_quat(np.roll(pose[3:], -1))
    asked = np.concatenate([pose[:3], np.roll(rolled.as_quat(), 1)])
    reached = solver.forward(solver.inverse(asked[None], DOWN, step=1.0))[0]
    assert np.linalg.norm(reached[:3] - pose[:3]) < 1e-6
    assert 0.05 < turned(reached, asked) < np.pi / 4
    for joint in range(5):  # nothing near it that keeps the position is turned less
        for step in (-0.02, 0.02):
            other = solver.inverse(asked[None], DOWN, step=1.0) + step * np.eye(5)[joint]
            place = solver.forward(other)[0]
            assert np.linalg.norm(place[:3] - asked[:3]) > 1e-4 or turned(place, asked) > turned(reached, asked) - 1e-3


def test_both_arms_reach_their_own_poses() -> None:
    solver = two_arms()
    rng = np.random.default_rng(3)
    joints = np.concatenate([DOWN, DOWN]) + rng.uniform(-0.2, 0.2, 10)
    poses = solver.forward(joints)
    assert poses[0, 1] > 0.1 and poses[1, 1] < -0.1
    np.testing.assert_allclose(solver.inverse(poses, np.concatenate([DOWN, DOWN]), step=0.5), joints, atol=1e-5)


def stretched(solver: KinematicSolver, step: float) -> Float[np.ndarray, "n 5"]:
    """The joints on a way out of reach and back."""
    pose, joints = solver.forward(DOWN), [DOWN]
    for x in [*np.linspace(0.26, 0.6, 30), *[0.6] * 10, *np.linspace(0.6, 0.26, 30)]:
        pose[0, :3] = x, 0.02, 0.15
        joints.append(solver.inverse(pose, joints[-1], step=step))
    return np.array(joints)


def test_a_stretched_arm_keeps_its_pace_and_stands_still() -> None:
    path = stretched(so101(), 0.2)
    moved = np.abs(np.diff(path, axis=0)).max(axis=1)
    assert moved.max() <= 0.2 + 1e-12 and moved[:29].max() > 0.05
    # Out of reach it neither shakes nor goes on moving.
    assert moved[34:40].max() < 2e-3
    assert np.linalg.norm(so101().forward(path[-1])[0, :3] - [0.26, 0.02, 0.15]) < 1e-6
    assert np.abs(np.diff(stretched(so101(), 10.0), axis=0)).max() > 0.4


def test_a_start_beyond_the_limits_comes_inside() -> None:
    solver = so101()
    beyond = solver.high + 0.05
    found = solver.inverse(solver.forward(solver.high), beyond, step=0.1)
    assert (found <= solver.high).all()


@pytest.mark.parametrize(
    ("model", "frame", "words"),
    [
        ("so101", "tip", "gripperframe"),
        ("so101", "base", "no joint moves base"),
        ("no.xml", "tip", "no such file"),
        ("setup.cfg", "tip", "no such file"),
    ],
)
def test_what_is_not_there_is_named(model: str, frame: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        extract_chain(load_robot_model(model), [frame])


@pytest.mark.parametrize("text", ["", "<mujoco", "<mujoco><worldbody><body/></mujoco>"])
@pytest.mark.parametrize("suffix", [".xml", ".urdf", ".bin"])
def test_a_file_that_is_no_model_is_named(tmp_path: Path, text: str, suffix: str) -> None:
    path = tmp_path / f"arm{suffix}"
    path.write_text(text)
    with pytest.raises(InputError, match=f"arm{suffix}"):
        load_robot_model(str(path))


def test_a_tool_that_flies_is_refused() -> None:
    flying = (
        "<mujoco><worldbody><body name='drone'><freejoint name='free'/><geom size='1'/></body></worldbody></mujoco>"
    )
    with pytest.raises(InputError, match="neither a hinge nor a slide"):
        extract_chain(mujoco.MjModel.from_xml_string(flying), ["drone"])
    nameless = "<mujoco><worldbody><body name='arm'><joint/><geom size='1'/></body></worldbody></mujoco>"
    with pytest.raises(InputError, match="no name"):
        extract_chain(mujoco.MjModel.from_xml_string(nameless), ["arm"])
