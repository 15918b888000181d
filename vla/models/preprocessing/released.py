"""Image preprocessing of released checkpoints, from their image processor's settings or their family's."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers.utils import cached_file

from vla.errors import InputError
from vla.models.preprocessing.frames import Crop, Square, Stretch
from vla.models.preprocessing.molmo_crops import MAX_CROPS, Crops
from vla.models.preprocessing.native import Native, Patches
from vla.models.preprocessing.settings import Framing
from vla.models.preprocessing.tiles import Canvas, Split, Tiles, Whole

FILES = ("processor_config.json", "preprocessor_config.json")
RESAMPLE = {1: "bicubic", 2: "bilinear", 3: "bicubic"}
"""Filters by Pillow's numbers. As in transformers, Lanczos (1) is replaced by bicubic, except in the families of
`LANCZOS`, whose images transformers resizes with Pillow."""
LANCZOS = ("smolvlm",)

OF_IMAGES = {"image_mean", "image_processor_type", "feature_extractor_type"}
"""Keys of which a file with the settings of an image processor has at least one."""
SIZES = ("size", "crop_size", "max_image_size")
"""Settings of the size of frames."""

Values = Mapping[str, Any]


def file_of(name: str | Path, file: str) -> dict[str, Any] | None:
    """The content of a checkpoint's JSON file; None where it does not exist.

    Args:
        name: id on the hub, or a folder.

    Raises:
        InputError: where it is not JSON.
    """
    path = cached_file(
        name, file, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False
    )
    if path is None:
        return None
    try:
        values: dict[str, Any] = json.loads(Path(path).read_text())
    except ValueError as error:
        raise InputError(f"{file} of {name} is damaged: {error}") from error
    return values


def preprocessor_of(name: str | Path, defaults: Values) -> dict[str, Any]:
    """The settings of a checkpoint's image processor, with transformers' names and the family's `defaults`.

    Mean and standard deviation are scaled so that a value is (x / 255 - mean) / std.

    Raises:
        InputError: for a damaged file, or without a normalisation.
    """
    values = dict(defaults)
    for file in FILES:
        found = file_of(name, file) or {}
        settings = found.get("image_processor", found)
        if settings is not found or not OF_IMAGES.isdisjoint(settings):
            values |= {key: value for key, value in settings.items() if value is not None}
            break
    if "image_mean" not in values:
        raise InputError(f"{name} has no mean and std of its images: it has no preprocessor_config.json")
    scale = 255 * values.get("rescale_factor", 1 / 255) if values.get("do_rescale", True) else 255.0
    normalised = values.get("do_normalize", True)
    mean, std = (values["image_mean"], values["image_std"]) if normalised else ([0.0] * 3, [1.0] * 3)
    return values | {"image_mean": [m / scale for m in mean], "image_std": [s / scale for s in std]}


def framing_of(family: str, values: Values, side: int) -> Framing:
    """The framing of an image processor's settings.

    Args:
        side: default side of a square frame [pixels].

    Raises:
        InputError: for unsupported settings.
    """
    number = values.get("resample", 3)
    if number not in RESAMPLE:
        raise InputError(f"Pillow's filter {number} is not supported: bilinear and bicubic are")
    if not values.get("do_resize", True):
        raise InputError("the image processor has do_resize=false: images without resizing are not supported")
    resample = "lanczos" if number == 1 and family in LANCZOS else RESAMPLE[number]
    if resample == "bicubic" and values.get("pillow"):
        resample = "pillow-bicubic"
    try:
        return FRAMINGS.get(family, _plain)(values, side, resample)
    except InputError:
        raise
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"the image processor's settings cannot be read ({error!r}): {dict(values)}") from error


def frame_of(values: Values) -> int | tuple[int, int] | None:
    """Side of a square frame, or height and width [pixels]; None where the settings have no size."""
    cropped = values.get("do_center_crop", True) and values.get("crop_size")
    if not (size := cropped or values.get("size")):
        return None
    height, width = _both(size)
    return height if height == width else (height, width)


def _plain(values: Values, side: int, resample: str) -> Framing:
    size: Any = values.get("size") or side
    by_shortest = isinstance(size, dict) and "shortest_edge" in size
    # CLIP's processor ignores do_pad.
    if values.get("do_pad") and not str(values.get("image_processor_type")).startswith("CLIP"):
        fill = [int(255 * mean) for mean in values["image_mean"]]
        return Square(_both(values.get("crop_size") or size), resample, (fill[0], fill[1], fill[2]))
    if by_shortest and (not values.get("do_center_crop") or size.get("longest_edge")):
        raise InputError(
            f"the image processor has the size {size} and do_center_crop={values.get('do_center_crop', False)}: images "
            "of any shape are not supported by this backbone: give a height and a width, or do_center_crop=true"
        )
    if not values.get("do_center_crop"):
        return Stretch(_both(size), resample)
    if isinstance(size, dict) and not by_shortest:
        frame = _both(values.get("crop_size") or size)
        return Stretch(frame, resample, None if frame == _both(size) else _both(size))
    shortest = size["shortest_edge"] if by_shortest else min(_both(size))
    return Crop(_both(values.get("crop_size") or shortest), shortest, resample, values.get("crop_nearest", False))


def _native(values: Values, side: int, resample: str) -> Framing:
    size = values.get("size") or {}
    least = values.get("min_pixels") or size.get("shortest_edge") or size["min_pixels"]
    most = values.get("max_pixels") or size.get("longest_edge") or size["max_pixels"]
    return Native(values["patch_size"] * values["merge_size"], least, most, resample)


def _patches(values: Values, side: int, resample: str) -> Framing:
    size, cell = values.get("size") or {"longest_edge": side}, values["patch_size"]
    return Patches(_both(cell)[0] * values.get("spatial_merge_size", 1), size["longest_edge"], resample)


def _tiles(values: Values, side: int, resample: str) -> Framing:
    most, least = values.get("max_patches", 12), values.get("min_patches", 1)
    return Tiles(_both(values.get("size") or side), most, least, resample, bool(values.get("shared_patches")))


def _split(values: Values, side: int, resample: str) -> Framing:
    tile = (values.get("max_image_size") or {}).get("longest_edge", side)
    longest = (values.get("size") or {}).get("longest_edge", 4 * tile)
    if values.get("do_image_splitting", True):
        return Split(tile, longest, resample)
    return Whole(tile, longest, resample)


def _crops(values: Values, side: int, resample: str) -> Framing:
    return Crops(
        side, values.get("image_patch_size") or values["patch_size"], values.get("max_crops", MAX_CROPS), resample
    )


def _canvas(values: Values, side: int, resample: str) -> Framing:
    return Canvas(_both(values.get("size") or side), values.get("max_image_tiles", 4), resample)


FRAMINGS: dict[str, Callable[[Values, int, str], Framing]] = {
    "qwen2_vl": _native,
    "qwen2_5_vl": _native,
    "pixtral": _patches,
    "internvl": _tiles,
    "smolvlm": _split,
    "mllama": _canvas,
    "molmo": _crops,
}


def _both(size: Any) -> tuple[int, int]:
    """Height and width [pixels] of a size in an image processor's settings."""
    if isinstance(size, int):
        return size, size
    if isinstance(size, list | tuple):
        return int(size[0]), int(size[-1])
    if "height" in size:
        return int(size["height"]), int(size["width"])
    side = size.get("shortest_edge") or size.get("longest_edge")
    return int(side), int(side)
