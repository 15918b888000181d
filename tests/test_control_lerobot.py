"""LeRobot's SO-101 behind our protocol, on the emulated bus."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from emulated_arms import OPTIONS, connected, emulated, make, retried

from vla.embodiment import Embodiment
from vla.envs.arm import JOINTS
from vla.errors import InputError
from vla.robots.feetech_emulator.port import ServoPort
from vla.robots.feetech_emulator.servo import Register
from vla.robots.lerobot_adapter.robot import LeRobotRobot, so101
from vla.robots.limits import Limits
from vla.robots.robot import Robot, RobotFault


@pytest.fixture
def port(tmp_path: Path) -> Iterator[ServoPort]:
    with emulated(tmp_path, "so101") as port:
        yield port


@pytest.fixture
def robot(port: ServoPort, tmp_path: Path) -> Iterator[LeRobotRobot]:
    with connected(make(port, tmp_path)) as robot:
        yield robot


def test_states_and_commands_are_the_joints_in_radians(port: ServoPort, robot: LeRobotRobot) -> None:
    assert isinstance(robot, Robot)
    goal = np.array([0.3, -1.0, 0.9, 0.7, -0.4, 1.0])
    retried(lambda: robot.command(goal))
    for servo, value in zip(port.bus.servos, goal, strict=True):
        for _ in range(1000):
            if servo.goal == pytest.approx(value, abs=0.004):
                break
            retried(robot.state)
        assert servo.goal == pytest.approx(value, abs=0.004)
    first = retried(robot.state)
    observed = retried(lambda: robot.observe("wave"))
    assert observed.instruction == "wave" and observed.time > first[1]
    for _ in range(2000):
        state, _ = retried(robot.state)
        if np.allclose(state, goal, atol=0.03):
            break
    np.testing.assert_allclose(state, goal, atol=0.03)
    np.testing.assert_allclose(port.arm.joints, state, atol=0.03)


def test_a_joint_beyond_its_limit_is_not_thrown_back(port: ServoPort, tmp_path: Path) -> None:
    """Its limits are narrower than where it stands; the guard moves it, a command in between goes through. A damaged
    reading widens nothing."""
    whole = make(port, tmp_path)
    high = list(whole.embodiment.action_high)
    high[2] = 0.6
    narrow = LeRobotRobot(
        type="so101_follower",
        options=whole._options,
        embodiment=replace(whole.embodiment, action_high=tuple(high)),
        limits=whole.limits,
        keys=whole.keys,
        scale=whole._scale.tolist(),
        offset=whole._offset.tolist(),
    )
    with connected(narrow) as robot:
        seen = retried(robot.state)[0]
        between, beyond = (seen + np.array([0.0, 0.0, step, 0.0, 0.0, 0.0]) for step in (-0.1, 0.2))
        for wanted, expected in ((seen, seen[2]), (beyond, seen[2]), (between, between[2])):
            retried(lambda wanted=wanted: robot.command(wanted))
            retried(robot.state)  # what was written before it has arrived
            servo = port.bus.servos[2]
            assert servo.to_angle(servo.get(Register.GOAL_POSITION)) == pytest.approx(expected, abs=0.02)
        read = robot._read
        robot._read = lambda: dict.fromkeys(robot.keys, 170.0)  # type: ignore[method-assign]
        robot.state()
        robot._read = read  # type: ignore[method-assign]
        retried(lambda: robot.command(beyond + 1.0))
        retried(robot.state)
        assert servo.to_angle(servo.get(Register.GOAL_POSITION)) == pytest.approx(seen[2], abs=0.02)


def test_the_limits_of_the_joints_are_those_of_the_calibration(tmp_path: Path) -> None:
    ends = {joint: {"range_min": 1000 - 10 * i, "range_max": 3000 + 10 * i} for i, joint in enumerate(JOINTS)}
    (tmp_path / "so101.json").write_text(json.dumps(ends))
    body = so101(port="x", calibration_dir=str(tmp_path), **OPTIONS).embodiment
    degrees = [(2000 + 20 * i) / 2 * 360 / 4095 for i in range(5)]  # as LeRobot's MotorNormMode.DEGREES
    np.testing.assert_allclose(np.degrees(body.action_high[:5]), degrees)
    np.testing.assert_allclose(np.degrees(body.action_low[:5]), np.negative(degrees))
    (tmp_path / "so101.json").write_text("{}")
    with pytest.raises(InputError, match=r"so101\.json is no calibration .*calibrate again"):
        so101(port="x", calibration_dir=str(tmp_path), **OPTIONS)


def test_a_command_stays_within_the_joints(port: ServoPort, robot: LeRobotRobot) -> None:
    retried(lambda: robot.command(np.full(6, 9.0)))
    retried(robot.state)
    assert all(servo.get(Register.GOAL_POSITION) <= servo.get(Register.MAX_POSITION) for servo in port.bus.servos)
    for wrong in (np.full(6, np.nan), np.zeros(5)):
        with pytest.raises(RobotFault) as fault:
            robot.command(wrong)
        assert not fault.value.transient


@pytest.mark.parametrize("fault", ["mute", "corrupt", "drop", "delay"])
def test_faults_of_the_wire_are_transient(port: ServoPort, robot: LeRobotRobot, fault: str) -> None:
    setattr(port.bus.faults, fault, {"mute": {3}, "delay": 0.2}.get(fault, 1.0))
    with pytest.raises(RobotFault) as raised:
        robot.state()
    assert raised.value.transient
    setattr(port.bus.faults, fault, set() if fault == "mute" else 0.0)
    # An answer that came too late is not taken for that to the next question.
    state, _ = retried(robot.state)
    np.testing.assert_allclose(state, port.arm.joints, atol=0.05)


def test_waiting_for_an_answer_leaves_the_processor_to_others(port: ServoPort, robot: LeRobotRobot) -> None:
    port.bus.faults.mute = {servo.id for servo in port.bus.servos}
    began, worked = time.monotonic(), time.thread_time()
    with pytest.raises(RobotFault):
        robot.state()
    assert time.thread_time() - worked < (time.monotonic() - began) / 2


def test_an_unplugged_cable_is_no_transient_fault(port: ServoPort, robot: LeRobotRobot) -> None:
    port.unplug()
    for call in (robot.state, lambda: robot.command(np.zeros(6))):
        with pytest.raises(RobotFault) as raised:
            call()
        assert not raised.value.transient
    robot.disable_torque()  # never raises


def test_torque_is_disabled_in_every_servo_but_the_mute_one(port: ServoPort, robot: LeRobotRobot) -> None:
    port.bus.servos[1].overload()
    port.bus.faults.mute = {3}
    robot.disable_torque()
    port.bus.faults.mute = set()
    assert [servo.torque for servo in port.bus.servos] == [False, False, True, False, False, False]


def test_two_arms_are_one_robot(tmp_path: Path) -> None:
    sides = ("left", "right")
    with emulated(tmp_path, "pair_left") as left, emulated(tmp_path, "pair_right") as right:
        one, ports = so101(port="", calibration_dir="", **OPTIONS), dict(zip(sides, (left, right), strict=True))
        names = tuple(f"{side} {name}" for side in sides for name in one.embodiment.action)
        body = one.embodiment
        pair = LeRobotRobot(
            type="bi_so_follower",
            options={"id": "pair", "calibration_dir": str(tmp_path)}
            | {f"{side}_arm_config": {"port": ports[side].path, "use_degrees": True} for side in sides},
            embodiment=Embodiment(
                body.name, body.cameras, names, names, body.action_low * 2, body.action_high * 2, body.control_hz
            ),
            limits=Limits(one.limits.velocity * 2, one.limits.acceleration * 2),
            keys=[f"{side}_{key}" for side in sides for key in one.keys],
            scale=[*one._scale] * 2,
            offset=[*one._offset] * 2,
        )
        with connected(pair):
            state, _ = retried(pair.state)
            np.testing.assert_allclose(state, [*left.arm.joints, *right.arm.joints], atol=0.05)
            # Away from the limits: without torque the arms fall until they are connected.
            middle = (np.array(body.action_low) + np.array(body.action_high)) / 2
            goal = state + np.where(state < np.tile(middle, 2), 0.1, -0.1)
            retried(lambda: pair.command(goal))
            retried(pair.state)  # answered after what was written before
            goals = [servo.goal for port in (left, right) for servo in port.bus.servos]
            np.testing.assert_allclose(goals, goal, atol=0.01)
            right.bus.faults.mute = {2}
            with pytest.raises(RobotFault) as fault:
                pair.state()
            assert fault.value.transient
            right.bus.faults.mute = set()
        # They hold what they were told: leaving does not let the arms fall.
        assert all(servo.torque for port in (left, right) for servo in port.bus.servos)
        with connected(pair):
            pair.disable_torque()
            assert not any(servo.torque for port in (left, right) for servo in port.bus.servos)


def test_what_is_not_calibrated_does_not_move(port: ServoPort, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is missing"), make(port, tmp_path / "other"):
        pass
    assert not any(servo.torque for servo in port.bus.servos)


def test_wrong_options_are_named(tmp_path: Path) -> None:
    body = so101(port="x", calibration_dir=str(tmp_path), **OPTIONS)
    common: dict[str, Any] = dict(
        embodiment=body.embodiment, limits=body.limits, keys=body.keys, scale=[1.0] * 6, offset=[0.0] * 6
    )
    with pytest.raises(InputError, match="nobody"), LeRobotRobot(type="nobody", options={}, **common):
        pass
    with (
        pytest.raises(InputError, match="prot"),
        LeRobotRobot(type="so101_follower", options={"prot": "x", "calibration_dir": str(tmp_path)}, **common),
    ):
        pass
    with pytest.raises(InputError, match="each of"):
        LeRobotRobot(type="so101_follower", options={}, **common | {"scale": [1.0]})
    with pytest.raises(InputError, match="velocity"):
        so101(port="x", calibration_dir=str(tmp_path), **OPTIONS | {"velocity": 0.0})


def test_an_arm_in_lerobots_units_is_the_same_arm(port: ServoPort, tmp_path: Path) -> None:
    box = {"low": [0.1, -0.2, 0.0], "high": [0.4, 0.2, 0.3]}
    seen = []
    ours = make(port, tmp_path, workspace=box)
    theirs = make(port, tmp_path, workspace=box, units="lerobot")
    for arm in (make(port, tmp_path), theirs, make(port, tmp_path)):  # it sinks a little while nothing holds it
        with connected(arm) as robot:
            seen.append(retried(robot.state)[0])
    low, high = ours.embodiment.action_low[5], ours.embodiment.action_high[5]
    before, told, after = seen
    between = np.array([[*np.degrees(s[:5]), 100 * (s[5] - low) / (high - low)] for s in (before, after)])
    assert (between.min(0) - 0.5 <= told).all() and (told <= between.max(0) + 0.5).all()
    assert theirs.embodiment.action == ours.keys and theirs.embodiment.grippers == ("gripper.pos",)
    np.testing.assert_allclose(theirs.embodiment.action_low[:5], np.degrees(ours.embodiment.action_low[:5]))
    np.testing.assert_allclose([theirs.embodiment.action_low[5], theirs.embodiment.action_high[5]], [0, 100], atol=1e-9)
    np.testing.assert_allclose(theirs.limits.velocity[:5], np.degrees(OPTIONS["velocity"]))
    for pose in (np.zeros(6), np.array([0.0, -1.2, 1.0, 0.8, 0.0, 0.5]), np.array([1.5, 0, 0, 0, 0, 0])):
        in_theirs = np.array([*np.degrees(pose[:5]), 100 * (pose[5] - low) / (high - low)])
        assert ours.limits.workspace is not None and theirs.limits.workspace is not None
        assert ours.limits.workspace(pose) == theirs.limits.workspace(in_theirs)
    with pytest.raises(InputError, match="units=degrees: choose radians or lerobot"):
        make(port, tmp_path, units="degrees")
