"""Checks that an episode can be stored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise

import numpy as np

from vla.common.statistics import check_finite
from vla.datasets.store_arrays import Shape
from vla.embodiment import Embodiment
from vla.errors import InputError
from vla.types import Episode


def check_episode(episode: Episode, embodiment: Embodiment, stored: Mapping[str, Shape]) -> None:
    """Checks an episode against a robot and the shapes of the `stored` arrays.

    Raises:
        InputError: it is empty, of another robot, not finite, or its shapes differ from the stored ones.
    """
    embodiment.union([episode.embodiment])
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
        shape, _ = stored.get(f"images/{camera}", ((*images.shape[1:3], 3), None))
        _check(f"images of camera {camera!r}", images, (steps, *shape), np.dtype(np.uint8))
    for camera, depth in episode.depth.items():
        if camera not in embodiment.cameras:
            raise InputError(f"episode has depth of {camera!r}, the cameras are {', '.join(embodiment.cameras)}")
        shape, _ = stored.get(f"depth/{camera}", (depth.shape[1:3], None))
        _check(f"depth of camera {camera!r}", depth, (steps, *shape), np.dtype(np.uint16))
    for name, values in episode.extras.items():
        if values.dtype.kind not in "fiub" or values.dtype.itemsize > 8:
            raise InputError(f"episode's extra {name!r} must be of numbers of up to 64 bits, not {values.dtype}")
        shape, dtype = stored.get(f"extras/{name}", (values.shape[1:], values.dtype.newbyteorder("=")))
        _check(f"extra {name!r}", values, (steps, *shape), dtype)
    if episode.points is not None:
        shape, _ = stored.get("points", ((*episode.points.shape[1:2], 2), None))
        _check("points", episode.points, (steps, *shape))
    if episode.chunks is not None:
        shape, _ = stored.get("chunks", ((*episode.chunks.shape[1:2], len(embodiment.action)), None))
        _check("chunks", episode.chunks, (steps, *shape))
    for span in episode.spans:
        if not 0 <= span.start < span.stop <= steps:
            raise InputError(
                f"sub-task {span.instruction!r} from {span.start} to {span.stop} does not lie within the {steps} steps"
            )


def check_names(kind: str, names: Iterable[str]) -> None:
    """Raises InputError unless the names are valid array paths: plain names, no duplicates, none nested in another."""
    paths = sorted(name.split("/") for name in names)
    for path in paths:
        if not all(component.strip(".") and component != "zarr.json" for component in path):
            raise InputError(f"{kind} must have a plain name, not {'/'.join(path)!r}")
    for first, second in pairwise(paths):
        if second[: len(first)] == first:
            raise InputError(f"{kind} {'/'.join(second)!r} conflicts with {'/'.join(first)!r}: rename one")


def _check(what: str, values: np.ndarray, shape: tuple[int, ...], dtype: np.dtype | None = None) -> None:
    if 0 in values.shape:
        raise InputError(f"episode's {what} are empty: {values.shape}")
    if values.shape != shape or dtype not in (None, values.dtype.newbyteorder("=")):
        expected = f"{dtype or values.dtype} {shape}"
        raise InputError(f"episode's {what} are {values.dtype} {values.shape}, expected {expected}")


def _check_rows(kind: str, values: np.ndarray, steps: int, names: tuple[str, ...]) -> None:
    if values.shape != (steps, len(names)):
        raise InputError(f"episode's {kind} has shape {values.shape}, expected {(steps, len(names))}")
    check_finite(values, names, f"episode's {kind}")
