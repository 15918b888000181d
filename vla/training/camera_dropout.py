"""Camera dropout: training rows without some of the robot's cameras, for policies that tolerate a missing camera."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from vla.common.points import arrange_points
from vla.errors import InputError
from vla.models.robot_spec import RobotSpec
from vla.types import Example

STREAM = 0x2545F491
"""Separates these random numbers from others that are derived from a row's key and a camera."""


def without_cameras(example: Example, share: float, key: tuple[int, ...]) -> Example:
    """Drops each camera of a robot's example with probability `share`, with its points and past frames.

    Questions, and robot rows with questions, are returned unchanged: their answers may depend on any image. The random
    number of a camera depends only on the row's `key` and the camera's name. If all cameras would be dropped, the one
    with the largest random number is retained.
    """
    if share == 0 or isinstance(example.target, str) or example.turns or len(example.images) < 2:
        return example
    samples = {c: np.random.default_rng([*key, zlib.crc32(c.encode()), STREAM]).random() for c in example.images}
    retained = [c for c, value in samples.items() if value >= share] or [max(samples, key=lambda c: samples[c])]
    if len(retained) == len(samples):
        return example
    points = example.points
    if points is not None:
        points = arrange_points(points, tuple(samples), retained, len(points) * len(retained) // len(samples))
    images, *past = (
        {camera: views[camera] for camera in retained if camera in views} for views in (example.images, *example.past)
    )
    return replace(example, images=images, past=tuple(past), points=points)


def report_dropout(share: float, robots: Sequence[RobotSpec]) -> Iterator[str]:
    """Yields one line per robot on its camera dropout."""
    for robot in robots if share else ():
        cameras = robot.embodiment.cameras
        if len(cameras) > 1:
            yield (
                f"camera dropout of {robot.name}: {', '.join(cameras)}, each dropped in {share:.1%} of the rows; at "
                "least one camera is retained; rows with questions keep all cameras"
            )
        else:
            yield f"camera dropout of {robot.name}: none, it has one camera"


def check_dropout(share: float, robots: Sequence[RobotSpec]) -> None:
    """Raises InputError if camera dropout is enabled and no robot has several cameras."""
    if share and not any(len(robot.embodiment.cameras) > 1 for robot in robots):
        named = ", ".join(robot.name for robot in robots) or "no robot"
        raise InputError(
            f"plan.camera_dropout needs a robot with several cameras, and there is {named}: remove the option"
        )
