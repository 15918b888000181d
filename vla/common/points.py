"""Points of the things that an instruction names (`Episode.points`): as many of each camera, one camera after another.

| data                        | points                                                                   |
|-----------------------------|--------------------------------------------------------------------------|
| 2 cameras, 1 thing (pick)   | camera 1: thing 1; camera 2: thing 1                                     |
| 2 cameras, 2 things (place) | camera 1: thing 1, thing 2; camera 2: thing 1, thing 2                   |
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from vla.errors import InputError


def arrange_points(
    points: Float[np.ndarray, "*t p 2"], cameras: Sequence[str], wanted: Sequence[str], count: int
) -> Float[np.ndarray, "*t q 2"]:
    """Points of `cameras` as the `count` points of the cameras `wanted`: each stays that of its camera and thing.

    A thing beyond those that they are of is in no image (-1), for the instruction names no such thing; where none of a
    step's points is known, nor is this (NaN), and of a camera beyond those nothing is. Raises InputError for more
    things than `count` has room for, and for points that are not as many of each camera where they must be moved.
    """
    have = points.shape[-2]
    if have == count and tuple(cameras) == tuple(wanted):
        return points
    if not cameras or not wanted or have % len(cameras) or count % len(wanted):
        raise InputError(
            f"{have} points are not as many of each of {len(cameras)} cameras, or {count} of {len(wanted)}"
        )
    things = have // len(cameras)
    if things * len(wanted) > count:
        raise InputError(f"{have} points, of {things} things in {len(cameras)} cameras, are more than the {count} here")
    by_camera = points.reshape(*points.shape[:-2], len(cameras), things, 2)
    arranged = np.full((*points.shape[:-2], len(wanted), count // len(wanted), 2), np.nan)
    known = ~np.isnan(points).all((-2, -1))
    for place, camera in enumerate(wanted):
        if camera in cameras:
            arranged[..., place, :things, :] = by_camera[..., list(cameras).index(camera), :, :]
            arranged[..., place, things:, :] = np.where(known, -1.0, np.nan)[..., None, None]
    return arranged.reshape(*points.shape[:-2], count, 2)
