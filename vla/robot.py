"""`vla robot`: what an operator does to an arm between runs."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from vla.control.loop import ControlLoop, LoopConfig, Tick
from vla.control.robot import Robot, RobotFault
from vla.control.robots.lerobot_robot import LeRobotRobot, so101_units
from vla.control.stop import EmergencyStop, operator
from vla.control.thread_inference import ThreadInference
from vla.embodiment import Embodiment
from vla.errors import Failure, InputError, unknown
from vla.policies.go_to import HORIZON, GoToPolicy

if TYPE_CHECKING:
    from vla.control.robots.servos import Servo

SPEED = 0.25
"""Of the robot's limit of velocity."""
LONGEST = 120.0
"""[s] for the way home."""
NEAR = 0.05
"""How close to the pose is there, as a fraction of a joint's range."""
SETTLE = 0.5
"""[s] at the pose before it is looked at."""
TICKS = 50
"""About how many commands a second the arm gets: a multiple of its own rate."""


def robot(*, action: str, robot: Robot, pose: Mapping[str, float] | None) -> None:
    """Does `action`: status, clear, relax or home.

    Raises InputError for a robot without Feetech servos (but for home), a port that cannot be opened, and a pose
    outside the limits; Failure where a servo is not well in the end, or the arm does not reach the pose.
    """
    if action == "home":
        _home(robot, pose)
        return
    if not isinstance(robot, LeRobotRobot):
        raise InputError(f"{action} is for robots with Feetech servos, such as robot=so101")
    with robot.servos() as servos:
        {"status": _status, "clear": _clear, "relax": _relax}[action](servos)


def _status(servos: list[Servo]) -> None:
    from vla.control.robots.servo_service import HEADER, status_of

    print(HEADER)
    wrong: list[str] = []
    for servo in servos:
        status = status_of(servo)
        print(status.row(), flush=True)
        wrong += status.wrong
    if wrong:
        raise Failure("; ".join(wrong))


def _clear(servos: list[Servo]) -> None:
    from vla.control.robots.servo_service import clear_errors

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


def _relax(servos: list[Servo]) -> None:
    from vla.control.robots.servo_service import relax

    print("torque goes off: the arm falls", flush=True)
    if kept := relax(servos):
        raise Failure("; ".join(kept))


def _home(robot: Robot, pose: Mapping[str, float] | None) -> None:
    body = robot.embodiment
    policy = GoToPolicy(body, goal_of(robot, pose), [SPEED * limit for limit in robot.limits.velocity])
    state = [np.full(len(body.state), np.nan)]

    def watch(tick: Tick) -> None:
        state[0] = tick.state

    def there() -> str | None:
        return "there" if policy.arrived(time.monotonic() - SETTLE) else None

    inference = ThreadInference(policy)
    try:
        hz = body.control_hz * max(1, round(TICKS / body.control_hz))
        config = LoopConfig(hz=hz, execution="chunked", execute=1, ttl=HORIZON)
        loop = ControlLoop(robot, inference, config, stop=EmergencyStop([operator, there]), watch=watch)
        reason = loop.run("home", LONGEST).reason
    finally:
        inference.close()
    if reason != "there":
        raise Failure(f"{reason}: the arm holds where it is")
    span = np.array(body.action_high) - np.array(body.action_low)
    far = [name for name, left in zip(body.action, policy.left(state[0]) > NEAR * span, strict=True) if left]
    if far:
        raise Failure(f"{', '.join(far)} did not get there: something is in the way, or the load is too high")
    print("the arm is at the pose and holds")


def goal_of(robot: Robot, pose: Mapping[str, float] | None) -> Float[np.ndarray, "a"]:
    """The pose as an action, NaN where a component stays. Raises InputError for joints that the robot does not have,
    values outside its limits, and where there is no pose for it."""
    body = robot.embodiment
    low, high = np.array(body.action_low), np.array(body.action_high)
    if pose is None:
        return np.clip(_waiting(body), low, high)
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


def _waiting(body: Embodiment) -> Float[np.ndarray, "6"]:
    """The pose in which the simulated arm waits, in the units of a SO-101's embodiment."""
    from vla.envs.arm import JOINTS, arm_spec
    from vla.envs.ik import ArmIK
    from vla.envs.so101 import home_joints

    keys, scale, offset = so101_units()
    joints = home_joints(ArmIK(arm_spec().compile()))
    if body.action == tuple(f"{joint} [rad]" for joint in JOINTS):
        return joints
    if body.action == keys:
        return joints * np.array(scale) + np.array(offset)
    raise InputError(f"there is no pose for {body.name}: say where each joint goes, pose='{{joint: value}}'")
