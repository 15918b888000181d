"""Training rows that lack cameras of their robot, so that a policy acts when one of them is missing."""

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
"""What parts these draws from the others that a row's key and a camera give."""


def without_cameras(example: Example, share: float, key: tuple[int, ...]) -> Example:
    """The example of a robot without some of its cameras, each left out with the probability `share`, and without
    their points and past frames. A question stays as it is, and so does a row of a robot that has questions too: their
    answers may depend on any of the images.

    What is drawn for a camera depends on the row's `key` and the camera's name alone. Where all would be left out, the
    one that was the nearest to staying stays.
    """
    if share == 0 or isinstance(example.target, str) or example.turns or len(example.images) < 2:
        return example
    drawn = {c: np.random.default_rng([*key, zlib.crc32(c.encode()), STREAM]).random() for c in example.images}
    kept = [c for c, value in drawn.items() if value >= share] or [max(drawn, key=lambda c: drawn[c])]
    if len(kept) == len(drawn):
        return example
    points = example.points
    if points is not None:
        points = arrange_points(points, tuple(drawn), kept, len(points) * len(kept) // len(drawn))
    images, *past = (
        {camera: views[camera] for camera in kept if camera in views} for views in (example.images, *example.past)
    )
    return replace(example, images=images, past=tuple(past), points=points)


def report_dropout(share: float, robots: Sequence[RobotSpec]) -> Iterator[str]:
    """A line for each robot: which cameras rows lack, and which rows keep all."""
    for robot in robots if share else ():
        cameras = robot.embodiment.cameras
        if len(cameras) > 1:
            yield (
                f"camera dropout of {robot.name}: {', '.join(cameras)}, each left out of {share:.1%} of the rows but "
                "never the last; rows with questions keep all cameras"
            )
        else:
            yield f"camera dropout of {robot.name}: none, it has one camera"


def check_dropout(share: float, robots: Sequence[RobotSpec]) -> None:
    """Raises InputError where cameras are to be left out and no robot has several."""
    if share and not any(len(robot.embodiment.cameras) > 1 for robot in robots):
        named = ", ".join(robot.name for robot in robots) or "no robot"
        raise InputError(
            f"plan.camera_dropout leaves out cameras of robots that have several, and there is {named}: leave it out"
        )
