"""A stored episode with some of its steps, with other numbers in them, or without some of its cameras."""

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
    """Adds episode `index` of `source` to `target` with the `steps` alone, which rise; images are copied as they are
    coded, and sub-tasks are cut alike.

    `rows` are arrays of numbers, by name, that take the place of those stored, a row for each step of the whole
    episode. Cameras that `target` does not have are left out. Raises InputError when no step is left, the stores have
    other codecs or are of other robots, or the episode is damaged.
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
    for name, parts in source.stored(index).items():
        kind, _, camera = name.partition("/")
        if kind in ("images", "depth") and camera in others:
            continue
        if is_rows(name):
            values = rows[name] if rows is not None and name in rows else parts[0]
            if name == "points":
                values = _of_cameras(values, source.embodiment.cameras, cameras)
            content[name] = [np.asarray(values, parts[0].dtype)[steps]]
        else:
            content[name] = [parts[step] for step in steps.tolist()]
    record = replace(
        record,
        length=len(steps),
        streams=tuple(name for name in record.streams if name in content),
        spans=cut_spans(record.spans, steps),
    )
    there = source.shapes
    shapes = {name: there[name] for name in content}
    shapes |= {name: (parts[0].shape[1:], parts[0].dtype) for name, parts in content.items() if is_rows(name)}
    target.append_stored(content, record, shapes)


def cut_spans(spans: tuple[Span, ...], steps: Int[np.ndarray, "k"]) -> tuple[Span, ...]:
    """The sub-tasks counted in the `steps` that are left; those of which none is are gone."""
    found = []
    for span in spans:
        start, stop = np.searchsorted(steps, [span.start, span.stop]).tolist()
        if start < stop:
            found.append(replace(span, start=start, stop=stop))
    return tuple(found)


def _of_cameras(
    points: Shaped[np.ndarray, "t p 2"], cameras: tuple[str, ...], kept: tuple[str, ...]
) -> Shaped[np.ndarray, "t q 2"]:
    """The points in the images of the cameras that are kept: they come one camera after the other."""
    parts = np.split(points, len(cameras), axis=1)
    return np.concatenate([parts[cameras.index(camera)] for camera in kept], axis=1) if kept else points[:, :0]
