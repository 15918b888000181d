"""A source with corrected images: red and blue exchanged, or flipped.

Files do not state the channel order or the orientation of their images. OpenCV encodes and shows BGR, so that
`cv2.imencode` stores RGB images with red and blue exchanged (ACT's compress_data.py, RoboTwin's pkl2hdf5.py); OpenGL
renders from the bottom row up; and some datasets are rotated by 180 degrees, or from a camera that is mounted upside
down.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from vla.datasets.episode_source import EpisodeSource
from vla.embodiment import Embodiment
from vla.errors import InputError
from vla.types import Episode

FLIPS: Mapping[str, tuple[bool, bool]] = {
    "vertical": (True, False),
    "horizontal": (False, True),
    "rotate180": (True, True),
}
"""Whether rows and columns are reversed."""
OPTIONS = ("bgr", "flip")


def correct_images(source: EpisodeSource, options: Mapping[str, Any]) -> EpisodeSource:
    """The source with its images corrected by the options `bgr` and `flip`, or unchanged without these options.

    Args:
        source: any source of episodes.
        options: `bgr` is true, or a list of cameras: red and blue are exchanged. `flip` is one of `FLIPS` for all
            cameras, or {camera: one of FLIPS}; depth and points are flipped with the images.

    Raises:
        InputError: there is no such camera or flip.
    """
    cameras = source.embodiment.cameras
    bgr, flip = options.get("bgr") or (), options.get("flip") or {}
    swapped = cameras if bgr is True else (bgr,) if isinstance(bgr, str) else tuple(bgr)
    flips = dict.fromkeys(cameras, flip) if isinstance(flip, str) else dict(flip)
    for key, selected in (("bgr", swapped), ("flip", flips)):
        unknown = [camera for camera in selected if camera not in cameras]
        if unknown:
            raise InputError(f"{key}: there is no camera {unknown[0]!r}, only {', '.join(cameras) or 'none'}")
    for how in flips.values():
        if how not in FLIPS:
            raise InputError(f"flip={how}: choose {', '.join(FLIPS)}, or one of them by camera, {{CAMERA: rotate180}}")
    if not cameras and (bgr or flip):
        raise InputError("bgr and flip correct images, and there is no camera: leave them out")
    return CorrectedSource(source, swapped, flips) if swapped or flips else source


class CorrectedSource:
    """The episodes of `source` with corrected images (`correct_images`)."""

    def __init__(self, source: EpisodeSource, swapped: Sequence[str], flips: Mapping[str, str]) -> None:
        self._source = source
        self._swapped = frozenset(swapped)
        self._flips = {camera: FLIPS[how] for camera, how in flips.items()}
        self.provenance: Mapping[str, Any] = source.provenance

    @property
    def embodiment(self) -> Embodiment:
        """The embodiment of the source."""
        return self._source.embodiment

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Episode:
        episode = self._source[index]
        images = {
            camera: self._flipped(camera, frames[..., ::-1] if camera in self._swapped else frames)
            for camera, frames in episode.images.items()
        }
        depth = {camera: self._flipped(camera, frames) for camera, frames in episode.depth.items()}
        points = None if episode.points is None else self._moved(episode.points)
        return replace(episode, images=images, depth=depth, points=points)

    def _flipped(self, camera: str, frames: Shaped[np.ndarray, "t h w *c"]) -> Shaped[np.ndarray, "t h w *c"]:
        rows, columns = self._flips.get(camera, (False, False))
        frames = frames[:, ::-1] if rows else frames
        return np.ascontiguousarray(frames[:, :, ::-1] if columns else frames)

    def _moved(self, points: Float[np.ndarray, "t p 2"]) -> Float[np.ndarray, "t p 2"]:
        """Flips points: each camera has an equal block of columns. NaN (unknown) stays NaN."""
        moved, cameras = points.copy(), self.embodiment.cameras
        per_camera = points.shape[1] // len(cameras)
        for number, camera in enumerate(cameras):
            for axis, backwards in enumerate(reversed(self._flips.get(camera, (False, False)))):
                block = moved[:, number * per_camera : (number + 1) * per_camera, axis]
                block[:] = 1 - block if backwards else block
        return moved
