"""The camera frames in a robot's row, their order, and the points in them.

Frames are ordered by time, oldest first, then by the embodiment's cameras. There are no frames before the start of an
episode, and no image tokens for them.
A missing camera has no image tokens in its row, so that nothing attends to it. Its points are unknown and have no loss.
Only a policy trained with `plan.camera_dropout` accepts missing cameras, and it needs at least one.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
from jaxtyping import Float

from vla.common.points import arrange_points
from vla.common.scene_objects import POINT_SCALE
from vla.common.stored_image import Image, StoredImage, StoredViews
from vla.errors import InputError
from vla.models.robot_spec import RobotSpec
from vla.types import Example

REMEDY = "a policy trained with plan.camera_dropout=0.1 accepts missing cameras"


def shown_cameras(robot: RobotSpec, images: Collection[str]) -> tuple[str, ...]:
    """The embodiment's cameras, in its order, for which there are `images`.

    Raises:
        InputError: where a required camera is missing, or all are.
    """
    cameras = robot.embodiment.cameras
    present = tuple(camera for camera in cameras if camera in images)
    if len(present) == len(cameras) or (present and robot.fewer_cameras):
        return present
    missing = next(camera for camera in cameras if camera not in images)
    raise InputError(
        f"camera {missing} is missing from the observation, which has {list(images)}"
        + ("" if robot.fewer_cameras else f"; {REMEDY}")
    )


def row_frames(
    robot: RobotSpec, images: StoredViews, past: Sequence[StoredViews]
) -> list[tuple[str, Image | StoredImage]]:
    """The camera and image of each frame in a row, from the present `images` and the `past`.

    Raises:
        InputError: as `shown_cameras`, and where the length of `past` differs from that of the robot's history.
    """
    if len(past) != len(robot.history):
        raise InputError(
            f"{robot.name}: this policy needs frames of {len(robot.history)} past moments, not of {len(past)}: "
            "vla.policies.history collects them"
        )
    cameras = shown_cameras(robot, images)
    return [(camera, views[camera]) for views in (*past, images) for camera in cameras if camera in views]


def percent(points: Float[np.ndarray, "p 2"]) -> Float[np.ndarray, "p 2"]:
    """Fractions of the image as integer percent; -1 for a point that is unknown or not in its image."""
    visible = ((points >= 0) & (points < 1)).all(1, keepdims=True)
    return np.where(visible, np.floor(np.nan_to_num(points) * POINT_SCALE), -1.0)


def points_of(robot: RobotSpec, example: Example) -> Float[np.ndarray, "p 2"]:
    """The target points of the model, by camera and object; NaN where the example does not contain one."""
    if example.points is None or robot.points == 0:
        return np.full((robot.points, 2), np.nan)
    return arrange_points(example.points, tuple(example.images), robot.embodiment.cameras, robot.points)
