"""Past frames in the observation: converts seconds before the present to steps at the rate of each robot's data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from vla.errors import InputError
from vla.models.robot_spec import RobotSpec


def history_steps(seconds: Iterable[float], rate: float) -> tuple[int, ...]:
    """Converts `seconds` before the present to steps at `rate` [Hz], in descending order.

    Raises:
        InputError: an offset is less than a step, or two are the same step.
    """
    steps: dict[int, float] = {}
    for offset in sorted(seconds, reverse=True):
        count = round(offset * rate)
        if count < 1:
            raise InputError(
                f"plan.history: {offset:g} s is less than a step at {rate:g} Hz: the minimum is {1 / rate:g} s"
            )
        if count in steps:
            raise InputError(
                f"plan.history: {steps[count]:g} s and {offset:g} s are {count} steps at {rate:g} Hz: remove one"
            )
        steps[count] = offset
    return tuple(steps)


def with_history(robots: Sequence[RobotSpec], seconds: Sequence[float]) -> list[RobotSpec]:
    """Adds past frames, `seconds` before the present, to the robots; prints each offset that is rounded.

    Raises:
        InputError: as `history_steps`, and if there is no robot.
    """
    if seconds and not robots:
        raise InputError("plan.history needs a robot, and there is none: remove the option")
    updated = []
    for robot in robots:
        rate = robot.embodiment.control_hz
        steps = history_steps(seconds, rate)
        for count, offset in zip(steps, sorted(seconds, reverse=True), strict=True):
            if abs(count / rate - offset) > 1e-9:
                print(f"plan.history of {robot.name}: {offset:g} s is {count} steps, {count / rate:g} s", flush=True)
        updated.append(replace(robot, history=steps))
    return updated
