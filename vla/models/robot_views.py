"""What a row shows of a robot: which frames of which cameras, in which order, and the points that are in them.

Past frames come first, the oldest before all, then the present ones; of one moment they are in the order of the
embodiment's cameras. Before an episode's start there are none, and those have no image tokens either.
A camera that is missing has no image tokens in its row, so that nothing attends to it, and its points are unknown: they
have no loss. Only a policy that was trained with `plan.camera_dropout` goes without cameras, and never without all.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from jaxtyping import Float

from vla.common.points import arrange_points
from vla.common.stored_image import Image, StoredImage, StoredViews
from vla.errors import InputError
from vla.models.robot_spec import RobotSpec
from vla.types import Example

REMEDY = "a policy trained with plan.camera_dropout=0.1 can do without some cameras"


def shown_cameras(robot: RobotSpec, images: Collection[str]) -> tuple[str, ...]:
    """The embodiment's cameras, in its order: those of which there are `images`, named by camera.

    Raises InputError where one is missing that the robot does not act without, and where none is left.
    """
    cameras = robot.embodiment.cameras
    there = tuple(camera for camera in cameras if camera in images)
    if len(there) == len(cameras) or (there and robot.fewer_cameras):
        return there
    missing = next(camera for camera in cameras if camera not in images)
    raise InputError(
        f"camera {missing} is missing from the observation, which has {list(images)}"
        + ("" if robot.fewer_cameras else f"; {REMEDY}")
    )


def row_frames(
    robot: RobotSpec, images: StoredViews, past: Sequence[StoredViews]
) -> list[tuple[str, Image | StoredImage]]:
    """The camera and the image of each frame that a row shows, of the present `images` and those of the `past`.

    Raises InputError as `shown_cameras` does, and where the past is not of as many moments as the robot's history.
    """
    if len(past) != len(robot.history):
        raise InputError(
            f"{robot.name}: this policy is shown frames of {len(robot.history)} past moments, not of {len(past)}: "
            "vla.policies.history keeps them"
        )
    cameras = shown_cameras(robot, images)
    return [(camera, views[camera]) for views in (*past, images) for camera in cameras if camera in views]


def points_of(robot: RobotSpec, example: Example) -> Float[np.ndarray, "p 2"]:
    """The points that the model says, each of its camera and thing; NaN where the example does not know it."""
    if example.points is None or robot.points == 0:
        return np.full((robot.points, 2), np.nan)
    return arrange_points(example.points, tuple(example.images), robot.embodiment.cameras, robot.points)
