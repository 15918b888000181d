"""The choice among the robots that a model controls."""

from __future__ import annotations

from collections.abc import Sequence

from vla.embodiment import Embodiment
from vla.errors import InputError
from vla.models.robot_spec import RobotSpec


def named_robot(robots: Sequence[RobotSpec], name: str = "") -> RobotSpec:
    """The robot with this name, or the only robot. Raises InputError when there is none, or several."""
    if not robots:
        raise InputError("this checkpoint is a vision-language model without actions: train it on demonstrations")
    known = {robot.name: robot for robot in robots}
    if not name and len(known) > 1:
        raise InputError(f"this model drives {', '.join(known)}: choose one with embodiment=NAME")
    if name and name not in known:
        raise InputError(f"this model drives {', '.join(known)}, not {name}")
    return known[name] if name else robots[0]


def matching_robot(robots: Sequence[RobotSpec], body: Embodiment) -> RobotSpec:
    """The robot that matches an embodiment.

    A robot matches if it is compatible (`Embodiment.check`); a body without some cameras matches robots with
    `fewer_cameras`. Among several matches the name decides. Without a match the result is the robot of that name, or
    the only robot.

    Raises:
        InputError: where several match and none has the name.
    """
    alike = [robot for robot in robots if is_like(robot.embodiment, body)]
    alike = alike or [robot for robot in robots if is_like(robot.embodiment, body, robot.fewer_cameras)]
    named = [robot for robot in alike if robot.name == body.name]
    if len(alike) > 1 and not named:
        names = ", ".join(robot.name for robot in alike)
        raise InputError(f"this model drives {names}, which all match {body.name}: use one of these names")
    return (named or alike or [named_robot(robots, body.name if len(robots) > 1 else "")])[0]


def is_like(one: Embodiment, other: Embodiment, fewer_cameras: bool = False) -> bool:
    """Whether two embodiments are compatible (`Embodiment.check`)."""
    try:
        one.check(other, fewer_cameras)
        return True
    except InputError:
        return False
