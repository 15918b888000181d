"""The features that an episode fills in a LeRobot dataset: its own schema again where it came from one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from vla.datasets.formats.lerobot_features import CHUNKS, KNOWN, POINTS, TIME
from vla.errors import InputError
from vla.types import Episode

MIN_VIDEO = 32
"""Below it, SVT-AV1 ends the process with a division by zero."""
IMAGE_AXES = ["height", "width", "channels"]


@dataclass(frozen=True)
class Column:
    """One feature: its schema entry, and its values a step; texts are a list of strings."""

    feature: str
    entry: Mapping[str, Any]
    values: Callable[[Episode], Shaped[np.ndarray, "t ..."] | list[str]]


def columns_of(
    episode: Episode, provenance: Mapping[str, Any], use_videos: bool | None, regular_time: bool
) -> list[Column]:
    """The features for episodes like `episode`.

    What came from a LeRobot dataset (`provenance`) gets its features back: names, dtypes and shapes, images as they
    were stored unless `use_videos` says how. Otherwise names are LeRobot's usual ones, numbers are float64, and depth
    is stored as images, which are exact. `regular_time`: the times are what LeRobot itself will write.
    """
    known = provenance if provenance.get("format") == "lerobot" else {}
    schema: Mapping[str, Mapping[str, Any]] = known.get("features", {})
    cameras, maps = known.get("cameras", {}), known.get("depth", {})
    columns = [
        *_side_by_side("state", known.get("state", ()), schema, episode),
        *_side_by_side("action", known.get("action", ()), schema, episode),
    ]
    for camera in episode.embodiment.cameras:
        feature = cameras.get(camera, f"observation.images.{camera}")
        columns.append(_images(feature, camera, schema.get(feature), episode, use_videos))
    for camera in episode.depth:
        feature = maps.get(camera, f"observation.images.{camera}_depth")
        columns.append(_depth(feature, schema.get(feature), episode.depth[camera], "depth", camera))
    for name, values in episode.extras.items():
        if "/" in name:
            raise InputError(f"the extra {name!r} has a slash in its name, which LeRobot does not take")
        columns += _extra(name, schema, values)
    columns += [
        Column(name, _entry(entry["dtype"], (1,)), partial(_text, name))
        for name, entry in schema.items()
        if entry["dtype"] == "string"
    ]
    if not regular_time:
        columns.append(Column(TIME, _entry("float64", (1,)), lambda one: one.time))
    for name, field in ((POINTS, "points"), (CHUNKS, "chunks")):
        stream = getattr(episode, field)
        if stream is not None:
            entry = _entry("float64", (prod(stream.shape[1:]),))
            columns += _maybe_unknown(name, entry, partial(_stream, field))
    order = {feature: position for position, feature in enumerate(schema)}
    return sorted(columns, key=lambda column: order.get(column.feature, len(order)))


def _entry(dtype: str, shape: tuple[int, ...], names: list[str] | None = None) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "names": names}


def _known_entry(entry: Mapping[str, Any]) -> dict[str, Any]:
    """A schema's own entry, without what LeRobot says itself of the video files it writes."""
    return {**{key: value for key, value in entry.items() if "info" not in key}, "shape": tuple(entry["shape"])}


def _side_by_side(
    kind: str, features: tuple[str, ...] | list[str], schema: Mapping[str, Mapping[str, Any]], episode: Episode
) -> Iterator[Column]:
    """The state or the action, cut into the features that it was put together from."""
    names = getattr(episode.embodiment, kind)
    widths = [prod(schema[feature]["shape"]) for feature in features]
    if sum(widths) != len(names) or not features:
        if names:
            whole = "observation.state" if kind == "state" else kind
            entry = _entry("float64", (len(names),), list(names))
            yield Column(whole, entry, lambda one: getattr(one, kind))
        return
    end = 0
    for feature, width in zip(features, widths, strict=True):
        part = slice(end, end + width)
        yield Column(feature, _known_entry(schema[feature]), partial(_part, kind, part))
        end += width


def _text(name: str, one: Episode) -> list[str]:
    return list(one.info["steps"][name])


def _part(kind: str, part: slice, one: Episode) -> Float[np.ndarray, "t n"]:
    return getattr(one, kind)[:, part]


def _stream(field: str, one: Episode) -> Float[np.ndarray, "t ..."]:
    return getattr(one, field)


def _images(
    feature: str, camera: str, entry: Mapping[str, Any] | None, episode: Episode, use_videos: bool | None
) -> Column:
    shape = episode.images[camera].shape[1:]
    own = _entry("video", shape, IMAGE_AXES)
    if entry is not None and sorted(entry["shape"]) == sorted(shape):
        own = _known_entry(entry)
    if use_videos is not None:
        own["dtype"] = "video" if use_videos else "image"
    if own["dtype"] == "video" and min(shape[:2]) < MIN_VIDEO:
        raise InputError(
            f"images of {camera} are {shape[1]}x{shape[0]}: LeRobot's video encoder takes {MIN_VIDEO} pixels a side "
            "and more, give use_videos=false"
        )
    return Column(feature, own, lambda one: one.images[camera])


def _depth(
    feature: str, entry: Mapping[str, Any] | None, maps: Shaped[np.ndarray, "t h w"], field: str, name: str
) -> Column:
    """Depth [mm] as images, which are exact; as LeRobot's codes in a video where it came from one."""
    own = _entry("image" if entry is None else entry["dtype"], (*maps.shape[1:], 1), IMAGE_AXES)
    own["info"] = {"is_depth_map": True}
    return Column(feature, own, lambda one: getattr(one, field)[name][..., None])


def _extra(name: str, schema: Mapping[str, Mapping[str, Any]], values: Shaped[np.ndarray, "t ..."]) -> Iterator[Column]:
    entry = schema.get(name)
    # Flat, because LeRobot's statistics mix the rows of what is not, and fail on an episode of one step.
    own = _entry(str(values.dtype), (prod(values.shape[1:]),)) if entry is None else _known_entry(entry)
    if own["dtype"] in ("image", "video"):
        yield _depth(name, entry, values, "extras", name)
    elif values.dtype.kind == "f" and (entry is None or KNOWN + name in schema):
        yield from _maybe_unknown(name, own, lambda one: one.extras[name])
    else:
        yield Column(name, own, lambda one: one.extras[name])


def _maybe_unknown(
    name: str, entry: Mapping[str, Any], get: Callable[[Episode], Shaped[np.ndarray, "t ..."]]
) -> Iterator[Column]:
    """A stream that may hold NaN: its numbers, and which of them are known."""
    yield Column(name, entry, lambda one: np.where(np.isnan(get(one)), 0.0, get(one)))
    yield Column(KNOWN + name, {**entry, "dtype": "bool"}, lambda one: ~np.isnan(get(one)))


def cells(column: Column, episode: Episode) -> list[Any] | Shaped[np.ndarray, "t ..."]:
    """The column's values for LeRobot: an item a step, of the schema's dtype and shape.

    Raises InputError when the episode lacks them, or holds what LeRobot's statistics cannot take.
    """
    try:
        values = column.values(episode)
    except KeyError as error:
        raise InputError(f"it has no {error.args[0]!r}, which the first episode has") from None
    if isinstance(values, list) or column.entry["dtype"] in ("image", "video"):
        return values
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise InputError(f"{column.feature} holds values that are not finite, of which LeRobot makes no statistics")
    return values.astype(column.entry["dtype"]).reshape(len(episode), *column.entry["shape"])
