"""What an episode must be to enter a store."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from vla.datasets.statistics import check_finite
from vla.embodiment import Embodiment
from vla.errors import InputError
from vla.types import Episode


def check_episode(
    episode: Episode,
    embodiment: Embodiment,
    image_sizes: Mapping[str, tuple[int, int]],
    points: int | None,
    horizon: int | None,
) -> None:
    """Raises InputError naming what is wrong: empty, of another robot, of wrong shapes, or not finite.

    `image_sizes` (height, width), the number of `points` and the chunks' `horizon` are those of the store, absent
    while it has none.
    """
    embodiment.check(episode.embodiment)
    steps = len(episode)
    if steps == 0:
        raise InputError("an episode without steps cannot be stored")
    _check_rows("state", episode.state, steps, embodiment.state)
    _check_rows("action", episode.action, steps, embodiment.action)
    _check_rows("time", episode.time[:, None], steps, ("time [s]",))
    for camera in embodiment.cameras:
        if camera not in episode.images:
            raise InputError(f"episode has no images of camera {camera!r}: it has {', '.join(episode.images)}")
        images = episode.images[camera]
        expected = (steps, *image_sizes.get(camera, images.shape[1:3]), 3)
        if images.dtype != np.uint8 or images.shape != expected:
            found = f"{images.dtype} {images.shape}"
            raise InputError(f"episode's images of camera {camera!r} are {found}, expected uint8 {expected}")
    if episode.points is not None:
        expected = (steps, points or episode.points.shape[1], 2)
        if episode.points.shape != expected:
            raise InputError(f"episode's points have shape {episode.points.shape}, expected {expected}")
    if episode.chunks is not None:
        expected = (steps, horizon or episode.chunks.shape[1], len(embodiment.action))
        if episode.chunks.shape != expected:
            raise InputError(f"episode's chunks have shape {episode.chunks.shape}, expected {expected}")


def _check_rows(kind: str, values: np.ndarray, steps: int, names: tuple[str, ...]) -> None:
    if values.shape != (steps, len(names)):
        raise InputError(f"episode's {kind} has shape {values.shape}, expected {(steps, len(names))}")
    check_finite(values, names, f"episode's {kind}")
