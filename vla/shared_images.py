"""Images of several cameras in memory that processes share."""

from __future__ import annotations

from collections.abc import Mapping
from multiprocessing.shared_memory import SharedMemory

import numpy as np
from jaxtyping import UInt8


def views(memory: SharedMemory, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, UInt8[np.ndarray, "*_t _h _w 3"]]:
    """The images of each camera in the memory, one after the other."""
    found: dict[str, UInt8[np.ndarray, "*_t _h _w 3"]] = {}
    offset = 0
    for camera, shape in shapes.items():
        found[camera] = np.ndarray(shape, np.uint8, memory.buf, offset)
        offset += found[camera].nbytes
    return found
