"""Images of several cameras in memory that processes share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from multiprocessing.shared_memory import SharedMemory

import numpy as np
from jaxtyping import UInt8

from vla.types import Observation


def views(memory: SharedMemory, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, UInt8[np.ndarray, "*_t _h _w 3"]]:
    """The images of each camera in the memory, one after the other."""
    found: dict[str, UInt8[np.ndarray, "*_t _h _w 3"]] = {}
    offset = 0
    for camera, shape in shapes.items():
        found[camera] = np.ndarray(shape, np.uint8, memory.buf, offset)
        offset += found[camera].nbytes
    return found


def images_of(observation: Observation) -> dict[str, UInt8[np.ndarray, "_h _w 3"]]:
    """All images of an observation, those of its past too, by the number of their moment and their camera."""
    moments = (*observation.past, observation.images)
    return {f"{i}/{camera}": image for i, images in enumerate(moments) for camera, image in images.items()}


def without_images(observation: Observation) -> Observation:
    """What is left without them: `with_images` puts them back."""
    return replace(observation, images={}, past=tuple({} for _ in observation.past))


def with_images(observation: Observation, images: Mapping[str, UInt8[np.ndarray, "_h _w 3"]]) -> Observation:
    """The observation with the images that `images_of` gave."""
    moments: list[dict[str, UInt8[np.ndarray, "_h _w 3"]]] = [{} for _ in range(len(observation.past) + 1)]
    for key, image in images.items():
        number, _, camera = key.partition("/")
        moments[int(number)][camera] = image
    *past, present = moments
    return replace(observation, images=present, past=tuple(past))
