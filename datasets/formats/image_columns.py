"""Images and depth in foreign formats: decoding, scaling, and the assignment of depth to cameras."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import simplejpeg
from jaxtyping import Num, Shaped, UInt8, UInt16
from PIL import Image, UnidentifiedImageError

from vla.errors import InputError

JPEG_START = b"\xff\xd8\xff"
STARTS = (JPEG_START, b"\x89PNG\r\n\x1a\n", b"RIFF", b"BM", b"II*\0", b"MM\0*")
"""The first bytes of encoded images: JPEG, PNG, WebP, BMP, TIFF."""
# Words in a name that do not identify the camera.
KINDS = {"rgb", "image", "images", "img", "color", "depth"}
MILLIMETRES = 1000.0
CHANNELS = (1, 3, 4)
"""The channels of grayscale, color, and color with transparency."""
FORMS = {1: "grey", 4: "color, its transparency dropped"}
"""Descriptions of frames that do not have three channels, by number of channels."""
LEAST_SIDE = 8
"""Minimum side length [px] for an array without colors to be an image."""
FEW_LEVELS = 16
"""Maximum number of gray levels of a mask, which is not an image."""


def is_encoded_image(column: Any) -> bool:
    """Whether the rows of a dataset are encoded images: byte strings, or rows of uint8 padded with zeros."""
    strings = column.ndim == 1 and column.dtype.kind in "SOV"
    if not (strings or (column.ndim == 2 and column.dtype == np.uint8)) or not len(column):
        return False
    first = column[0]
    return not isinstance(first, str) and bytes(first).startswith(STARTS)


def decode_image(data: bytes, what: str) -> Shaped[np.ndarray, "h w ..."]:
    """The pixels of an encoded image: (h, w, 3) uint8 for JPEG, otherwise as Pillow decodes it ((h, w) uint16: depth).

    Bytes after a JPEG's end are padding. Raises InputError, with `what` as the image's name, if decoding fails.
    """
    try:
        if data.startswith(JPEG_START):
            return simplejpeg.decode_jpeg(data, colorspace="RGB")
        with Image.open(io.BytesIO(data)) as image:
            # Palette images are color images. Images of 16 bits have Pillow's mode "I" or "I;16".
            pixels = np.asarray(image.convert("RGB") if image.mode == "P" else image)
    except Exception as error:  # decoders raise almost any exception on damaged bytes
        raise _undecodable(data, what, error) from error
    return pixels.astype(np.uint16) if pixels.dtype == np.int32 else pixels


def decode_color(data: bytes, what: str) -> UInt8[np.ndarray, "h w 3"]:
    """The pixels of a color frame; transparency is dropped.

    Raises InputError as `decode_image` does, or if gray values have more than 8 bits, since their scale would depend on
    the content of each frame.
    """
    if data.startswith(JPEG_START):
        return decode_image(data, what)
    try:
        with Image.open(io.BytesIO(data)) as image:
            mode = image.mode
            if mode not in ("I", "F") and not mode.startswith("I;16"):
                return np.asarray(image.convert("RGB"))
    except Exception as error:  # decoders raise almost any exception on damaged bytes
        raise _undecodable(data, what, error) from error
    raise InputError(f"{what} has grey values of more than 8 bits ({mode}): is it depth?")


def _undecodable(data: bytes, what: str, error: Exception) -> InputError:
    reason = "it is empty" if not data else "it is no image" if isinstance(error, UnidentifiedImageError) else error
    return InputError(f"{what} cannot be decoded: {reason}")


def decode_frames(encoded: Iterable[bytes], what: str) -> UInt8[np.ndarray, "t h w 3"]:
    """Color frames of one size. Raises InputError that names a step that is not such a frame."""
    frames: list[np.ndarray] = []
    for step, data in enumerate(encoded):
        frame = decode_color(data, f"{what} at step {step}")
        if frame.shape != (frames or [frame])[0].shape:
            raise InputError(f"{what} at step {step} is {frame.dtype} {frame.shape}, not an image like the first")
        frames.append(frame)
    if not frames:
        raise InputError(f"{what} has no frames")
    return np.stack(frames)


@dataclass(frozen=True)
class FrameArray:
    """The interpretation of the rows of an array of numbers as the frames of a camera.

    `channels_first`: (t, c, h, w) and not (t, h, w, c). `scale` converts the numbers to 0 to 255.
    """

    channels_first: bool
    scale: float
    remark: str
    """A remark for the user on the inference; empty for (t, h, w, 3) uint8."""

    @classmethod
    def of(cls, name: str, shape: Sequence[int], dtype: np.dtype, first: Callable[[], np.ndarray]) -> FrameArray | None:
        """The interpretation for an array with rows of this shape; None if they are not frames.

        Frames are uint8 of 1, 3 or 4 channels, or floats of 3 channels in 0 to 1 or 0 to 255; `first` returns the rows
        of the first episode to find the range. Grayscale frames have more than `FEW_LEVELS` levels, unlike masks.
        """
        floats = dtype.kind == "f"
        last, leading = (shape[2], shape[0]) if len(shape) == 3 else (1, 0)
        channels_first = len(shape) == 3 and last not in CHANNELS and leading in CHANNELS
        channels = leading if channels_first else last
        sides = shape[1:] if channels_first else shape[:2]
        if len(shape) not in (2, 3) or channels not in CHANNELS or not (floats or dtype == np.uint8):
            return None
        if channels == 3 and not floats and not channels_first:
            return cls(False, 1.0, "")
        if (floats and channels != 3) or (channels == 1 and min(sides) < LEAST_SIDE):
            return None
        rows = first()
        if channels == 1 and len(np.unique(rows)) <= FEW_LEVELS:
            return None
        rows = rows[np.isfinite(rows)] if floats else rows
        if floats and not (rows.min(initial=0) >= 0 and rows.max(initial=0) <= 255):
            return None
        # Floats in 0 to 255 have a pixel above 1, unless all frames are black.
        scale = 255.0 if floats and rows.max(initial=0) <= 1 else 1.0
        kind = FORMS.get(channels, "color")
        facts = [kind, "channels first"] if channels_first else [kind]
        facts += [f"floats in 0 to {255 / scale:g}"] if floats else []
        return cls(channels_first, scale, f"{name} is read as images ({', '.join(facts)})")

    def frames(self, rows: Num[np.ndarray, "t ..."], what: str) -> UInt8[np.ndarray, "t h w 3"]:
        """The frames in RGB. Raises InputError, with `what` as their name, if a pixel is not finite."""
        finite = np.isfinite(rows.reshape(len(rows), -1)).all(axis=1)
        if not finite.all():
            raise InputError(f"{what} at step {int(finite.argmin())} has pixels that are not finite")
        if rows.ndim == 3:
            rows = rows[..., None]
        rows = rows.transpose(0, 2, 3, 1) if self.channels_first else rows
        rows = np.repeat(rows, 3, axis=3) if rows.shape[3] == 1 else rows[..., :3]
        if rows.dtype != np.uint8:
            rows = np.clip(np.round(rows * self.scale), 0, 255).astype(np.uint8)
        return np.ascontiguousarray(rows)


def depth_mm(values: Num[np.ndarray, "t h w *one"]) -> UInt16[np.ndarray, "t h w"]:
    """Depth [mm] from floats [m] or integers [mm]; 0 (unknown) where it does not fit into 16 bits."""
    flat = values.reshape(values.shape[:3])
    scaled = np.round(flat * MILLIMETRES) if np.issubdtype(flat.dtype, np.floating) else flat
    fits = np.isfinite(scaled) & (scaled >= 0) & (scaled <= np.iinfo(np.uint16).max)
    return np.where(fits, scaled, 0).astype(np.uint16)


def camera_of_depth(depth: Sequence[str], cameras: Iterable[str]) -> Mapping[str, str]:
    """{camera: name of its depth}, matched by name without words such as image, rgb and depth."""

    def bare(name: str) -> tuple[str, ...]:
        return tuple(word for word in name.lower().split("_") if word not in KINDS)

    return {camera: name for camera in cameras for name in depth if bare(name) == bare(camera)}
