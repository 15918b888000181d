"""The features of an episode in a LeRobot dataset. Data that came from LeRobot get their original schema back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from vla.datasets.formats.lerobot_features import CHUNKS, EXTRA_PREFIX, KNOWN_PREFIX, POINTS, TIME
from vla.errors import InputError
from vla.types import Episode

MIN_VIDEO = 32
"""Minimum side length [px] of a video: below it, SVT-AV1 terminates the process with a division by zero."""
OBSERVATION = "observation."
IMAGE_AXES = ["height", "width", "channels"]


@dataclass(frozen=True)
class Column:
    """A feature: its schema entry, and a function that returns its values per step. Texts are a list of strings."""

    feature: str
    entry: Mapping[str, Any]
    values: Callable[[Episode], Shaped[np.ndarray, "t ..."] | list[str]]


def columns_of(
    episode: Episode, provenance: Mapping[str, Any], use_videos: bool | None, regular_time: bool
) -> list[Column]:
    """The features for episodes like `episode`.

    State, action and cameras get LeRobot's standard names, which its policies expect. Numbers are float64, and depth is
    stored as images, which are exact. If the data came from a LeRobot dataset (`provenance`), features get their
    original names, dtypes and shapes.

    Args:
        episode: the example.
        provenance: the origin of the data.
        use_videos: whether images are stored as videos. None: as in the original dataset, or videos.
        regular_time: whether the times equal those that LeRobot writes itself.
    """
    original = provenance if provenance.get("format") == "lerobot" else {}
    schema: Mapping[str, Mapping[str, Any]] = original.get("features", {})
    cameras, maps = original.get("cameras", {}), original.get("depth", {})
    columns = [
        *_single_feature("state", original.get("state", ()), schema, episode),
        *_single_feature("action", original.get("action", ()), schema, episode),
    ]
    for camera in episode.embodiment.cameras:
        source = cameras.get(camera, "")
        feature = source if source.startswith(OBSERVATION) else f"observation.images.{camera}"
        columns.append(_images(feature, camera, schema.get(source), episode, use_videos))
    for camera in episode.depth:
        source = maps.get(camera, "")
        feature = source if source.startswith(OBSERVATION) else f"observation.images.{camera}_depth"
        columns.append(_depth(feature, schema.get(source), episode.depth[camera], "depth", camera))
    used = {column.feature for column in columns}
    for name, values in episode.extras.items():
        if "/" in name:
            raise InputError(f"the extra {name!r} has a slash in its name, which LeRobot does not support")
        # LeRobot interprets features whose names begin with action as additional actions.
        is_new = original.get("action") != ["action"] or "action" in original.get("renamed", {}).values()
        needs_prefix = name in used or (name.startswith("action") and is_new)
        columns += _extra(EXTRA_PREFIX + name if needs_prefix else name, name, schema, values)
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


def _original_entry(entry: Mapping[str, Any]) -> dict[str, Any]:
    """An entry of the original schema, without the information that LeRobot adds on its video files."""
    return {**{key: value for key, value in entry.items() if "info" not in key}, "shape": tuple(entry["shape"])}


def _single_feature(
    kind: str, features: Sequence[str], schema: Mapping[str, Mapping[str, Any]], episode: Episode
) -> Iterator[Column]:
    """The state or the action as the single feature that LeRobot's policies expect."""
    names = getattr(episode.embodiment, kind)
    if not names:
        return
    entries = [schema[feature] for feature in features if feature in schema]
    feature = "observation.state" if kind == "state" else kind
    is_unchanged = len(entries) == len(features) and sum(prod(entry["shape"]) for entry in entries) == len(names)
    if is_unchanged and list(features) == [feature]:
        yield Column(feature, _original_entry(entries[0]), lambda one: getattr(one, kind))
        return
    # Numbers that were float32 or narrower stay float32.
    dtype = (
        np.result_type(np.float32, *(entry["dtype"] for entry in entries)) if is_unchanged and entries else np.float64
    )
    yield Column(feature, _entry(str(np.dtype(dtype)), (len(names),), list(names)), lambda one: getattr(one, kind))


def _text(name: str, one: Episode) -> list[str]:
    return list(one.info["steps"][name])


def _stream(field: str, one: Episode) -> Float[np.ndarray, "t ..."]:
    return getattr(one, field)


def _images(
    feature: str, camera: str, entry: Mapping[str, Any] | None, episode: Episode, use_videos: bool | None
) -> Column:
    shape = episode.images[camera].shape[1:]
    new = _entry("video", shape, IMAGE_AXES)
    if entry is not None and sorted(entry["shape"]) == sorted(shape):
        new = _original_entry(entry)
    if use_videos is not None:
        new["dtype"] = "video" if use_videos else "image"
    if new["dtype"] == "video" and min(shape[:2]) < MIN_VIDEO:
        raise InputError(
            f"images of {camera} are {shape[1]}x{shape[0]}: LeRobot's video encoder needs at least {MIN_VIDEO} pixels "
            "a side, give use_videos=false"
        )
    return Column(feature, new, lambda one: one.images[camera])


def _depth(
    feature: str, entry: Mapping[str, Any] | None, maps: Shaped[np.ndarray, "t h w"], field: str, name: str
) -> Column:
    """Depth [mm] as images, which are exact, or as LeRobot's codes in a video if it came from one."""
    new = _entry("image" if entry is None else entry["dtype"], (*maps.shape[1:], 1), IMAGE_AXES)
    new["info"] = {"is_depth_map": True}
    return Column(feature, new, lambda one: getattr(one, field)[name][..., None])


def _extra(
    feature: str, name: str, schema: Mapping[str, Mapping[str, Any]], values: Shaped[np.ndarray, "t ..."]
) -> Iterator[Column]:
    entry = schema.get(feature, schema.get(name))
    # Flattened: for other shapes, LeRobot's statistics mix rows, and fail on an episode of one step.
    new = _entry(str(values.dtype), (prod(values.shape[1:]),)) if entry is None else _original_entry(entry)
    if new["dtype"] in ("image", "video"):
        yield _depth(feature, entry, values, "extras", name)
    elif values.dtype.kind == "f" and (entry is None or KNOWN_PREFIX + feature in schema):
        yield from _maybe_unknown(feature, new, lambda one: one.extras[name])
    else:
        yield Column(feature, new, lambda one: one.extras[name])


def _maybe_unknown(
    name: str, entry: Mapping[str, Any], get: Callable[[Episode], Shaped[np.ndarray, "t ..."]]
) -> Iterator[Column]:
    """A stream that may contain NaN: its numbers with 0 for NaN, and a mask of the known ones."""
    yield Column(name, entry, lambda one: np.where(np.isnan(get(one)), 0.0, get(one)))
    yield Column(KNOWN_PREFIX + name, {**entry, "dtype": "bool"}, lambda one: ~np.isnan(get(one)))


def cells(column: Column, episode: Episode) -> list[Any] | Shaped[np.ndarray, "t ..."]:
    """The column's values for LeRobot: one item per step, of the schema's dtype and shape.

    Raises InputError if the episode lacks them, or if LeRobot's statistics do not support them.
    """
    try:
        values = column.values(episode)
    except KeyError as error:
        raise InputError(f"it has no {error.args[0]!r}, which the first episode has") from None
    if isinstance(values, list) or column.entry["dtype"] in ("image", "video"):
        return values
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise InputError(f"{column.feature} has values that are not finite, which LeRobot's statistics do not support")
    return values.astype(column.entry["dtype"]).reshape(len(episode), *column.entry["shape"])
