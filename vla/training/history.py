"""The past frames that a policy is shown: seconds before the present, as steps at the rate of each robot's data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from vla.errors import InputError
from vla.models.robot_spec import RobotSpec


def history_steps(seconds: Iterable[float], rate: float) -> tuple[int, ...]:
    """Steps before the present, most first, of frames that are `seconds` before it at `rate` [Hz].

    Raises InputError where one is less than a step, and where two are the same step.
    """
    steps: dict[int, float] = {}
    for offset in sorted(seconds, reverse=True):
        count = round(offset * rate)
        if count < 1:
            raise InputError(f"plan.history: {offset:g} s is no step at {rate:g} Hz: the shortest is {1 / rate:g}")
        if count in steps:
            raise InputError(
                f"plan.history: {steps[count]:g} s and {offset:g} s are {count} steps at {rate:g} Hz: leave one out"
            )
        steps[count] = offset
    return tuple(steps)


def with_history(robots: Sequence[RobotSpec], seconds: Sequence[float]) -> list[RobotSpec]:
    """The robots with past frames so long before the present; prints what is rounded to the steps of a robot.

    Raises InputError as `history_steps` does, and where there is no robot.
    """
    if seconds and not robots:
        raise InputError("plan.history is of a robot's cameras, and there is no robot: leave it out")
    made = []
    for robot in robots:
        rate = robot.embodiment.control_hz
        steps = history_steps(seconds, rate)
        for count, offset in zip(steps, sorted(seconds, reverse=True), strict=True):
            if abs(count / rate - offset) > 1e-9:
                print(f"plan.history of {robot.name}: {offset:g} s is {count} steps, {count / rate:g} s", flush=True)
        made.append(replace(robot, history=steps))
    return made
