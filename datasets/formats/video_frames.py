"""Frames of a video file by time. Each is decoded once if they are read in order."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
from jaxtyping import Float, Shaped

from vla.datasets.source_files import reading_file
from vla.errors import InputError

NEAR = 5.0
"""Maximum distance ahead [s] for which decoding onwards is faster than a seek."""


class VideoReader:
    """An open video file. `pixels` is the pixel format of the frames: "rgb24", or "gray12le" for depth codes.

    Raises InputError that names the file if it is missing or cannot be decoded.
    """

    def __init__(self, path: Path, pixels: str = "rgb24") -> None:
        self.path = path
        self._pixels = pixels
        with reading_file(path, "a video"):
            self._container = av.open(str(path.absolute()))
            self._stream = self._container.streams.video[0]
            if self._stream.codec_context is None:  # PyAV does not check this
                raise ValueError("its codec is unknown")
        self._stream.thread_type = "AUTO"
        self._decoder: Iterator[Any] = self._container.decode(self._stream)
        self._frame: Any = None
        self._failed = False

    def close(self) -> None:
        """Closes the file."""
        self._container.close()

    def read(self, times: Float[np.ndarray, "t"], tolerance: float) -> Shaped[np.ndarray, "t h w ..."]:
        """The frames at ascending `times` [s]. Raises InputError if no frame is within `tolerance` [s] of a time."""
        frames: np.ndarray | None = None
        self._go_to(float(times[0]), tolerance)
        for position, time in enumerate(times):
            pixels = self._at(float(time), tolerance)
            if frames is None:
                frames = np.empty((len(times), *pixels.shape), pixels.dtype)
            frames[position] = pixels
        if frames is None:
            raise InputError(f"no frame of {self.path} was requested")
        return frames

    def _go_to(self, time: float, tolerance: float) -> None:
        current = 0.0 if self._frame is None else self._frame.time
        if current - tolerance <= time <= current + NEAR and not self._failed:
            return
        # In microseconds: the unit of a seek without a stream.
        self._container.seek(int(max(time - tolerance, 0.0) * av.time_base))
        self._decoder = self._container.decode(self._stream)
        self._frame = None
        self._failed = False

    def _at(self, time: float, tolerance: float) -> np.ndarray:
        frame, self._failed = self._frame, True  # until there is a frame: a failed decoder returns no more frames
        try:
            while frame is None or frame.time is None or frame.time < time - tolerance:
                frame = next(self._decoder)
        except StopIteration:
            raise InputError(f"{self.path} ends before {time:.3f} s: download it again") from None
        except (av.error.FFmpegError, ValueError) as error:
            raise InputError(f"{self.path} cannot be decoded at {time:.3f} s: {error}") from error
        self._frame, self._failed = frame, False
        if frame.is_corrupt:
            raise InputError(f"{self.path} is damaged at {time:.3f} s: download it again")
        if abs(self._frame.time - time) > tolerance:
            raise InputError(f"{self.path} has no frame at {time:.3f} s: the nearest is at {self._frame.time:.3f} s")
        return self._frame.to_ndarray(format=self._pixels)


def count_frames(path: Path) -> int:
    """The number of frames of a video, from its header or its duration. Raises InputError that names the file."""
    with reading_file(path, "a video"), av.open(str(path.absolute())) as container:
        stream = container.streams.video[0]
        count, duration, base, rate = stream.frames, stream.duration, stream.time_base, stream.average_rate
    if not count and duration and base and rate:
        count = round(float(duration * base) * float(rate))
    return int(count)
