"""Images and depth in foreign formats: decoding, scaling, and which depth belongs to which camera."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import simplejpeg
from jaxtyping import Num, Shaped, UInt8, UInt16
from PIL import Image

from vla.errors import InputError

JPEG_START = b"\xff\xd8\xff"
# What a name says beside which camera it is.
KINDS = {"rgb", "image", "images", "img", "color", "depth"}
MILLIMETRES = 1000.0


def decode_image(data: bytes, what: str) -> Shaped[np.ndarray, "h w ..."]:
    """The pixels of an encoded image: (h, w, 3) uint8 for a JPEG, else as Pillow has them ((h, w) uint16 for depth).

    Bytes after a JPEG's end are padding. Raises InputError, in which `what` names the image, when it cannot be decoded.
    """
    try:
        if data.startswith(JPEG_START):
            return simplejpeg.decode_jpeg(data, colorspace="RGB")
        with Image.open(io.BytesIO(data)) as image:
            # A palette is a way to write colors; 16 bits are Pillow's "I" or "I;16".
            pixels = np.asarray(image.convert("RGB") if image.mode == "P" else image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{what} cannot be decoded: {error}") from error
    return pixels.astype(np.uint16) if pixels.dtype == np.int32 else pixels


def decode_frames(encoded: Iterable[bytes], what: str) -> UInt8[np.ndarray, "t h w 3"]:
    """Color frames of one size. Raises InputError naming the step that is none."""
    frames: list[np.ndarray] = []
    for step, data in enumerate(encoded):
        frame = decode_image(data, f"{what} at step {step}")
        if frame.dtype == np.uint8 and frame.ndim == 2:
            frame = np.repeat(frame[..., None], 3, axis=2)
        frame = frame[..., :3]
        if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape != (frames or [frame])[0].shape:
            raise InputError(f"{what} at step {step} is {frame.dtype} {frame.shape}, not an image like the first")
        frames.append(frame)
    if not frames:
        raise InputError(f"{what} has no frames")
    return np.stack(frames)


def depth_mm(values: Num[np.ndarray, "t h w *one"]) -> UInt16[np.ndarray, "t h w"]:
    """Depth [mm] from floats [m] or integers [mm]; 0, which is unknown, where it does not fit 16 bits."""
    flat = values.reshape(values.shape[:3])
    scaled = np.round(flat * MILLIMETRES) if np.issubdtype(flat.dtype, np.floating) else flat
    fits = np.isfinite(scaled) & (scaled >= 0) & (scaled <= np.iinfo(np.uint16).max)
    return np.where(fits, scaled, 0).astype(np.uint16)


def camera_of_depth(depth: Sequence[str], cameras: Iterable[str]) -> Mapping[str, str]:
    """{camera: name of its depth}: names that are equal but for such words as image, rgb and depth."""

    def bare(name: str) -> tuple[str, ...]:
        return tuple(word for word in name.lower().split("_") if word not in KINDS)

    return {camera: name for camera in cameras for name in depth if bare(name) == bare(camera)}
