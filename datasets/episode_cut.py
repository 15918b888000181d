"""Copies a stored episode with a subset of its steps, with replaced numbers, or without some of its cameras."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from jaxtyping import Int, Shaped

from vla.datasets.episodes import EpisodeStore
from vla.datasets.store_arrays import is_rows
from vla.errors import InputError
from vla.types import Span


def append_cut(
    target: EpisodeStore,
    source: EpisodeStore,
    index: int,
    steps: Int[np.ndarray, "k"],
    rows: Mapping[str, Shaped[np.ndarray, "t ..."]] | None = None,
) -> None:
    """Adds some steps of episode `index` of `source` to `target`, with the sub-tasks cut accordingly.

    Encoded images are copied without decoding. Cameras that `target` does not have are left out.

    Args:
        target: the store to append to.
        source: the store that holds the episode.
        index: the episode's index in `source`.
        steps: the steps to copy, in ascending order.
        rows: replacements for arrays of numbers, by name, with one row per step of the full episode.

    Raises:
        InputError: there are no steps, the stores have different codecs or robots, or the episode is damaged.
    """
    cameras = target.embodiment.cameras
    if missing := set(cameras) - set(source.embodiment.cameras):
        raise InputError(f"{source.path} has no camera {min(missing)!r}")
    target.embodiment.union([replace(source.embodiment, cameras=cameras)])
    if source.codec != target.codec:
        raise InputError(f"{source.path} has images as {source.codec}, {target.path} as {target.codec}")
    if len(steps) == 0:
        raise InputError(f"no step of episode {index} of {source.path} would be left")
    record = source.records[index]
    others = set(source.embodiment.cameras) - set(cameras)
    content: dict[str, list[Any]] = {}
    for name, stored in source.stored(index).items():
        kind, _, camera = name.partition("/")
        if kind in ("images", "depth") and camera in others:
            continue
        if is_rows(name):
            values = rows[name] if rows is not None and name in rows else stored[0]
            if name == "points":
                values = _of_cameras(values, source.embodiment.cameras, cameras)
            content[name] = [np.asarray(values, stored[0].dtype)[steps]]
        else:
            content[name] = [stored[step] for step in steps.tolist()]
    record = replace(
        record,
        length=len(steps),
        streams=tuple(name for name in record.streams if name in content),
        spans=cut_spans(record.spans, steps),
    )
    source_shapes = source.shapes
    shapes = {name: source_shapes[name] for name in content}
    shapes |= {name: (arrays[0].shape[1:], arrays[0].dtype) for name, arrays in content.items() if is_rows(name)}
    target.append_stored(content, record, shapes)


def cut_spans(spans: tuple[Span, ...], steps: Int[np.ndarray, "k"]) -> tuple[Span, ...]:
    """The sub-tasks with start and stop counted in the remaining `steps`. Sub-tasks without any are dropped."""
    cut = []
    for span in spans:
        start, stop = np.searchsorted(steps, [span.start, span.stop]).tolist()
        if start < stop:
            cut.append(replace(span, start=start, stop=stop))
    return tuple(cut)


def _of_cameras(
    points: Shaped[np.ndarray, "t p 2"], cameras: tuple[str, ...], selected: tuple[str, ...]
) -> Shaped[np.ndarray, "t q 2"]:
    """The points of the selected cameras: each camera has an equal block of columns."""
    by_camera = np.split(points, len(cameras), axis=1)
    return (
        np.concatenate([by_camera[cameras.index(camera)] for camera in selected], axis=1) if selected else points[:, :0]
    )
