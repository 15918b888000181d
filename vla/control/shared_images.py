"""Images of several cameras in shared memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from multiprocessing.shared_memory import SharedMemory

import numpy as np
from jaxtyping import UInt8

from vla.types import Observation


def views(memory: SharedMemory, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, UInt8[np.ndarray, "*_t _h _w 3"]]:
    """Array views of the images in the memory, stored consecutively in the order of `shapes`."""
    arrays: dict[str, UInt8[np.ndarray, "*_t _h _w 3"]] = {}
    offset = 0
    for camera, shape in shapes.items():
        arrays[camera] = np.ndarray(shape, np.uint8, memory.buf, offset)
        offset += arrays[camera].nbytes
    return arrays


def images_of(observation: Observation) -> dict[str, UInt8[np.ndarray, "_h _w 3"]]:
    """All images of an observation, past frames included, by "INDEX/CAMERA"; the current images have the last index."""
    moments = (*observation.past, observation.images)
    return {f"{i}/{camera}": image for i, images in enumerate(moments) for camera, image in images.items()}


def without_images(observation: Observation) -> Observation:
    """The observation without its images; `with_images` restores them."""
    return replace(observation, images={}, past=tuple({} for _ in observation.past))


def with_images(observation: Observation, images: Mapping[str, UInt8[np.ndarray, "_h _w 3"]]) -> Observation:
    """The observation with the images that `images_of` returned."""
    moments: list[dict[str, UInt8[np.ndarray, "_h _w 3"]]] = [{} for _ in range(len(observation.past) + 1)]
    for key, image in images.items():
        number, _, camera = key.partition("/")
        moments[int(number)][camera] = image
    *past, present = moments
    return replace(observation, images=present, past=tuple(past))
