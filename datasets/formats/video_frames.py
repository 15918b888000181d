"""Frames of a video file by their times, each decoded once when they are asked for in order."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
from jaxtyping import Float, Shaped

from vla.errors import InputError

NEAR = 5.0
"""Seconds ahead to which decoding onwards beats a seek."""


class VideoReader:
    """An open video file; `pixels` is the format of what is read: "rgb24", or "gray12le" for depth codes.

    Raises InputError that names the file when it is missing or cannot be decoded.
    """

    def __init__(self, path: Path, pixels: str = "rgb24") -> None:
        self.path = path
        self._pixels = pixels
        try:
            self._container = av.open(str(path.absolute()))
            self._stream = self._container.streams.video[0]
        except (OSError, IndexError, av.error.FFmpegError) as error:
            raise InputError(f"{path} is no readable video: {error}") from error
        self._stream.thread_type = "AUTO"
        self._decoder: Iterator[Any] = self._container.decode(self._stream)
        self._frame: Any = None

    def close(self) -> None:
        self._container.close()

    def read(self, times: Float[np.ndarray, "t"], tolerance: float) -> Shaped[np.ndarray, "t h w ..."]:
        """The frames at `times` [s], which ascend. Raises InputError where none is within `tolerance` [s]."""
        frames: np.ndarray | None = None
        self._go_to(float(times[0]), tolerance)
        for position, time in enumerate(times):
            pixels = self._at(float(time), tolerance)
            if frames is None:
                frames = np.empty((len(times), *pixels.shape), pixels.dtype)
            frames[position] = pixels
        if frames is None:
            raise InputError(f"no frame of {self.path} was asked for")
        return frames

    def _go_to(self, time: float, tolerance: float) -> None:
        here = 0.0 if self._frame is None else self._frame.time
        if here - tolerance <= time <= here + NEAR:
            return
        # In microseconds, which is what a seek without a stream takes.
        self._container.seek(int(max(time - tolerance, 0.0) * av.time_base))
        self._decoder = self._container.decode(self._stream)
        self._frame = None

    def _at(self, time: float, tolerance: float) -> np.ndarray:
        try:
            while self._frame is None or self._frame.time < time - tolerance:
                self._frame = next(self._decoder)
        except StopIteration:
            raise InputError(f"{self.path} ends before {time:.3f} s") from None
        except av.error.FFmpegError as error:
            raise InputError(f"{self.path} cannot be decoded at {time:.3f} s: {error}") from error
        if abs(self._frame.time - time) > tolerance:
            raise InputError(f"{self.path} has no frame at {time:.3f} s: the nearest is at {self._frame.time:.3f} s")
        return self._frame.to_ndarray(format=self._pixels)
