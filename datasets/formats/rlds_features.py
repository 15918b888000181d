"""Reads the `features.json` of TensorFlow Datasets and decodes the columns that it describes.

Its leaves are `Image` (encoded, one byte string per step), `Text` (UTF-8, one per step) and `Tensor` (numbers, all
steps concatenated; or, with the encoding bytes or zlib, one byte string per step). In the records, the name of a leaf
is its path: `steps/observation/image`.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Shaped

from vla.datasets.formats.image_columns import CHANNELS, decode_frames, decode_image
from vla.datasets.formats.tfrecord import Values
from vla.datasets.source_files import read_json_object
from vla.errors import InputError

STEPS = "steps"
# float_list has float32 values. Other float types are converted from it.
DTYPES = {"bfloat16": "float32"}


@dataclass(frozen=True)
class Feature:
    """A leaf: its key in the records, and the shape and dtype of a step (-1: variable)."""

    key: str
    kind: Literal["image", "text", "tensor", "other"]
    shape: tuple[int, ...] = ()
    dtype: str = ""
    encoding: str = "none"

    @property
    def is_camera(self) -> bool:
        """Whether it is a camera: color images, or declared images in grayscale or with transparency, but not depth."""
        if self.dtype != "uint8" or len(self.shape) != 3:
            return False
        channels = CHANNELS if self.kind == "image" and "depth" not in self.key else (3,)
        return self.kind in ("image", "tensor") and self.shape[2] in channels

    @property
    def is_depth(self) -> bool:
        """Whether it may be depth: uint16 or floats, (h, w) or (h, w, 1)."""
        single = len(self.shape) == 2 or (len(self.shape) == 3 and self.shape[2] == 1)
        return "depth" in self.key and single and self.dtype in ("uint16", "float32", "float64")

    @property
    def is_numbers(self) -> bool:
        """Whether it may be an action or a state."""
        return self.kind == "tensor" and len(self.shape) <= 2

    @property
    def is_vector(self) -> bool:
        """Whether it is a float scalar or vector per step."""
        return self.kind == "tensor" and len(self.shape) <= 1 and self.dtype.startswith(("float", "bfloat"))

    def column(self, values: Values, steps: int, where: str) -> Shaped[np.ndarray, "t ..."]:
        """The feature's pixels or numbers, one row per step.

        Raises InputError that names the feature if it does not have `steps` rows of its shape.
        """
        what = f"{where}: {self.key}"
        if self.kind == "image" or self.encoding != "none":
            if len(values) != steps:
                raise InputError(f"{what} has {len(values)} rows for {steps} actions")
            return self._decode(values, what)
        rows, row = np.asarray(values), int(np.prod(self.shape))
        if rows.size != steps * row:
            raise InputError(f"{what} has {rows.size} numbers for {steps} actions, expected {steps} x {row}")
        return rows.reshape(steps, *self.shape).astype(DTYPES.get(self.dtype, self.dtype))

    def _decode(self, values: Values, what: str) -> Shaped[np.ndarray, "t ..."]:
        encoded = [bytes(value) for value in values]
        if self.is_camera and self.kind == "image":
            return decode_frames(encoded, what)
        if self.kind == "image":
            images = np.stack([decode_image(data, what) for data in encoded])
            # A float32 image is stored as a PNG with the four bytes of each value as channels.
            return images.view("<f4")[..., 0] if self.dtype == "float32" else images
        try:
            raw = [zlib.decompress(data) if self.encoding == "zlib" else data for data in encoded]
            return np.stack([np.frombuffer(data, self.dtype).reshape(self.shape) for data in raw])
        except (ValueError, zlib.error) as error:
            raise InputError(f"{what} cannot be decoded: {error}") from error


def read_features(path: Path) -> tuple[dict[str, Feature], dict[str, Feature]]:
    """The features per step and per episode, by path (`observation/image`, `episode_metadata/file_path`).

    Raises InputError if the file cannot be read, or describes no steps.
    """
    tree = read_json_object(path)
    try:
        leaves = list(_leaves(tree, ()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as the features of an RLDS data set: {error!r}") from error
    step = {f.key.removeprefix(f"{STEPS}/"): f for f in leaves if f.key.startswith(f"{STEPS}/")}
    if not step:
        raise InputError(f"{path} describes no steps: this is not an RLDS data set")
    return step, {f.key: f for f in leaves if not f.key.startswith(f"{STEPS}/")}


def _leaves(node: Mapping[str, Any], at: tuple[str, ...]) -> Iterator[Feature]:
    key = "/".join(at)
    if "featuresDict" in node:
        for name, child in node["featuresDict"]["features"].items():
            yield from _leaves(child, (*at, name))
    elif "sequence" in node and at == (STEPS,):
        yield from _leaves(node["sequence"]["feature"], at)
    elif "image" in node:
        yield Feature(key, "image", _shape(node["image"]), node["image"].get("dtype") or "uint8")
    elif "text" in node:
        yield Feature(key, "text")
    elif "tensor" in node:
        leaf = node["tensor"]
        shape, dtype = _shape(leaf), leaf["dtype"]
        # Rows of variable shape do not fit into one array.
        array = -1 not in shape and dtype != "string"
        kind: Literal["text", "tensor", "other"] = "tensor" if array else "other"
        yield Feature(key, "text" if (shape, dtype) == ((), "string") else kind, shape, dtype, _encoding(leaf))
    elif "classLabel" in node:
        yield Feature(key, "tensor", (), "int64")
    else:
        yield Feature(key, "other")


def _encoding(leaf: Mapping[str, Any]) -> str:
    return (leaf.get("encoding") or "none").lower()


def _shape(leaf: Mapping[str, Any]) -> tuple[int, ...]:
    return tuple(int(size) for size in leaf.get("shape", {}).get("dimensions", ()))
