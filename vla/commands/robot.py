"""`vla robot`: servo status, error reset, torque off and homing of an arm."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from vla.common.start_region import StartRegion
from vla.control.config import LoopConfig, rate_for
from vla.control.events import EventLog
from vla.control.loop import ControlLoop
from vla.control.status import Status
from vla.control.stop import EmergencyStop, operator
from vla.control.thread_inference import ThreadInference
from vla.embodiment import Embodiment
from vla.errors import EXIT_CODES, Failure, InputError, unknown
from vla.policies.data_summary import DataSummary
from vla.policies.hold import HoldPolicy
from vla.robots.lerobot_adapter.robot import LeRobotRobot, so101_units
from vla.robots.robot import Robot, RobotFault

if TYPE_CHECKING:
    from vla.robots.lerobot_adapter.servos import Servo

SPEED = 0.25
"""Homing speed, as a share of the robot's velocity limit."""
SETTLE = 0.5
"""How long the arm is monitored at the pose [s]."""


def robot(*, action: str, robot: Robot, pose: Mapping[str, float] | None) -> None:
    """Runs one of the actions status, clear, disable_torque and home.

    Raises:
        InputError: The robot has no Feetech servos (except for home), its port cannot be opened, or the pose is outside
            the limits.
        Failure: A servo reports an error, or the arm does not reach the pose.
    """
    if action == "home":
        _home(robot, pose)
        return
    if not isinstance(robot, LeRobotRobot):
        raise InputError(f"{action} needs a robot with Feetech servos, such as robot=so101")
    with robot.servos() as servos:
        {"status": _status, "clear": _clear, "disable_torque": _disable_torque}[action](servos)


def _status(servos: list[Servo]) -> None:
    from vla.robots.lerobot_adapter.servo_service import HEADER, status_of

    print(HEADER)
    wrong: list[str] = []
    for servo in servos:
        status = status_of(servo)
        print(status.row(), flush=True)
        wrong += status.wrong
    if wrong:
        raise Failure("; ".join(wrong))


def _clear(servos: list[Servo]) -> None:
    from vla.robots.lerobot_adapter.servo_service import clear_errors

    cleared, failed = 0, []
    for servo in servos:
        try:
            if flags := clear_errors(servo):
                print(f"{servo}: {', '.join(flags)} cleared", flush=True)
                cleared += 1
        except RobotFault as fault:
            failed.append(str(fault))
    if failed:
        raise Failure("; ".join(failed))
    if not cleared:
        print("no servo reports an error")


def _disable_torque(servos: list[Servo]) -> None:
    from vla.robots.lerobot_adapter.servo_service import disable_torque

    print("torque goes off: the arm falls", flush=True)
    if errors := disable_torque(servos):
        raise Failure("; ".join(errors))


def _home(robot: Robot, pose: Mapping[str, float] | None) -> None:
    body = robot.embodiment
    data = DataSummary(start=_region(body, goal_of(robot, pose)))
    inference, events = ThreadInference(HoldPolicy(body)), EventLog()
    status = Status(events)
    try:
        config = LoopConfig(hz=rate_for(body.control_hz), slow=SPEED)
        stop = EmergencyStop([operator])
        loop = ControlLoop(robot, inference, config, stop=stop, watch=status, data=data, events=events)
        with status:
            stats = loop.run("home", SETTLE)
    finally:
        inference.close()
    if stats.outcome != "done":
        raise Failure(f"{stats.reason}: the arm holds where it is", EXIT_CODES[stats.outcome])
    print("the arm is at the pose and holds")


def _region(body: Embodiment, goal: Float[np.ndarray, "a"]) -> StartRegion:
    """The region that contains only the goal; unbounded in components where the goal is NaN."""
    low, high, median = (np.full(len(body.state), value) for value in (-np.inf, np.inf, 0.0))
    for i, at in enumerate(body.measured_by):
        if at is not None and not np.isnan(goal[i]):
            low[at] = high[at] = median[at] = goal[i]
    return StartRegion(tuple(low), tuple(median), tuple(high))


def goal_of(robot: Robot, pose: Mapping[str, float] | None) -> Float[np.ndarray, "a"]:
    """The pose as an action, with NaN for components that do not move.

    Args:
        robot: The robot.
        pose: Target of each joint, in the units of the embodiment; None: the resting pose of a SO-101.

    Raises:
        InputError: The robot lacks a joint of the pose, a value is outside its limits, or it has no resting pose.
    """
    body = robot.embodiment
    low, high = np.array(body.action_low), np.array(body.action_high)
    if pose is None:
        return np.clip(_resting_pose(body), low, high)
    joints = {name.split(" [")[0].removesuffix(".pos"): at for at, name in enumerate(body.action)}
    goal = np.full(len(joints), np.nan)
    for joint, value in pose.items():
        if joint not in joints:
            raise unknown("joint of pose", joint, joints)
        at = joints[joint]
        if not isinstance(value, int | float) or not low[at] <= value <= high[at]:
            raise InputError(f"pose: {joint} is from {low[at]:.4g} to {high[at]:.4g} ({body.action[at]}), not {value}")
        goal[at] = value
    return goal


def _resting_pose(body: Embodiment) -> Float[np.ndarray, "6"]:
    """The resting pose of the simulated arm, in the units of a SO-101's embodiment."""
    from vla.envs.arm import JOINTS, arm_spec
    from vla.envs.ik import ArmIK
    from vla.envs.so101 import home_joints

    keys, scale, offset = so101_units()
    joints = home_joints(ArmIK(arm_spec().compile()))
    if body.action == tuple(f"{joint} [rad]" for joint in JOINTS):
        return joints
    if body.action == keys:
        return joints * np.array(scale) + np.array(offset)
    raise InputError(f"there is no default pose for {body.name}: set each joint, pose='{{joint: value}}'")
