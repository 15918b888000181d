"""The layout of `Episode.points`: the objects that an instruction names, in each camera, camera by camera.

| data                         | points                                                     |
|------------------------------|------------------------------------------------------------|
| 2 cameras, 1 object (pick)   | camera 1: object 1; camera 2: object 1                     |
| 2 cameras, 2 objects (place) | camera 1: object 1, object 2; camera 2: object 1, object 2 |
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from vla.errors import InputError


def arrange_points(
    points: Float[np.ndarray, "*t p 2"], cameras: Sequence[str], wanted: Sequence[str], count: int
) -> Float[np.ndarray, "*t q 2"]:
    """Rearranges points for another list of cameras and number of points.

    Additional objects are in no image (-1), because the instruction does not name them, or unknown (NaN) in steps
    without any known point. Points of additional cameras are unknown (NaN).

    Args:
        points: Points of `cameras`, as fractions of width and height.
        cameras: Cameras of `points`.
        wanted: Cameras of the result.
        count: Number of points of the result.

    Raises:
        InputError: There are more objects than `count` allows, or the number of points is not a multiple of the number
            of cameras.
    """
    have = points.shape[-2]
    if have == count and tuple(cameras) == tuple(wanted):
        return points
    if not cameras or not wanted or have % len(cameras) or count % len(wanted):
        raise InputError(
            f"cannot divide {have} points among {len(cameras)} cameras, or {count} points among {len(wanted)} cameras"
        )
    objects = have // len(cameras)
    if objects * len(wanted) > count:
        raise InputError(
            f"{have} points, of {objects} objects in {len(cameras)} cameras, do not fit into {count} points"
        )
    by_camera = points.reshape(*points.shape[:-2], len(cameras), objects, 2)
    arranged = np.full((*points.shape[:-2], len(wanted), count // len(wanted), 2), np.nan)
    known = ~np.isnan(points).all((-2, -1))
    for i, camera in enumerate(wanted):
        if camera in cameras:
            arranged[..., i, :objects, :] = by_camera[..., list(cameras).index(camera), :, :]
            arranged[..., i, objects:, :] = np.where(known, -1.0, np.nan)[..., None, None]
    return arranged.reshape(*points.shape[:-2], count, 2)
