"""What the features of a LeRobot dataset are in an episode.

| LeRobot feature                               | episode                                                       |
|-----------------------------------------------|---------------------------------------------------------------|
| observation.state, or all observation.state.* | state, side by side in the schema's order                     |
| action, or all action.*                       | action, likewise                                              |
| images and videos                             | images; depth maps go to depth, or to extras without a camera |
| timestamp, task                               | time, instruction and spans                                   |
| vla.*                                         | time, points, chunks, as `lerobot_v3_writer` writes them      |
| other numbers and truth values                | extras, a feature of shape (1,) as one value a step           |
| texts                                         | info["steps"], a list by name                                 |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from vla.datasets.formats.columns import component_names, own_names
from vla.errors import InputError

Features = Mapping[str, Mapping[str, Any]]
"""LeRobot's schema: dtype, shape and names by feature."""

COUNTERS = ("timestamp", "frame_index", "episode_index", "index", "task_index")
"""Features that every dataset has, and that LeRobot writes itself."""
TIME, POINTS, CHUNKS = "vla.time", "vla.points", "vla.chunks"
KNOWN = "vla.known."
"""Before another feature's name: which of its values are not NaN, with which LeRobot's statistics fail."""
STATE_PARTS, ACTION_PARTS = ("observation.state.", "state."), ("action.",)
CAMERA_PREFIXES = ("observation.images.", "observation.depth.", "observation.", "images.", "video.")


@dataclass(frozen=True)
class FeatureMap:
    """Which features make up an episode; `left_out` says why a feature is not among them."""

    state: tuple[str, ...]
    action: tuple[str, ...]
    cameras: Mapping[str, str]
    """Feature by camera."""
    depth: Mapping[str, str]
    """Feature by camera."""
    extras: tuple[str, ...]
    texts: tuple[str, ...]
    left_out: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        """In JSON values, for the provenance; the extras and texts are what is left of the schema."""
        return {
            "state": list(self.state),
            "action": list(self.action),
            "cameras": dict(self.cameras),
            "depth": dict(self.depth),
            "left_out": dict(self.left_out),
        }


def map_features(
    features: Features,
    where: str,
    state: Sequence[str] | None = None,
    action: Sequence[str] | None = None,
    cameras: Sequence[str] | None = None,
) -> FeatureMap:
    """The part that each feature has. `state`, `action` and `cameras` choose among several; `where` names the dataset.

    Raises InputError for a chosen name that there is not, and where there is no action.
    """
    numbers = [key for key in features if key not in COUNTERS and _is_number(features[key])]
    numbers = [key for key in numbers if not key.startswith("vla.")]
    chosen_state = _choose("state", state, numbers, "observation.state", STATE_PARTS, where)
    chosen_action = _choose("action", action, numbers, "action", ACTION_PARTS, where)
    if not chosen_action:
        raise InputError(f"{where} has no feature 'action': give action=[...] from {', '.join(numbers) or 'none'}")
    visual = [key for key, feature in features.items() if feature["dtype"] in ("image", "video")]
    colour = own_names([key for key in visual if not is_depth(features[key])], CAMERA_PREFIXES)
    by_camera = {colour[key]: key for key in visual if key in colour}
    for camera in cameras or ():
        if camera not in by_camera:
            raise InputError(f"{where} has no camera {camera!r}: it has {', '.join(by_camera) or 'none'}")
    seen = by_camera if cameras is None else {camera: by_camera[camera] for camera in cameras}
    maps = {_depth_camera(key): key for key in visual if is_depth(features[key])}
    depth = {camera: key for camera, key in maps.items() if camera in seen}
    texts = tuple(key for key, feature in features.items() if feature["dtype"] == "string")
    used = {*COUNTERS, *numbers, *visual, *texts}
    left_out = {
        key: f"its dtype {feature['dtype']} is neither number, image nor text"
        for key, feature in features.items()
        if key not in used and not key.startswith("vla.")
    }
    left_out |= {key: "not among the chosen cameras" for key in by_camera.values() if key not in seen.values()}
    return FeatureMap(
        state=chosen_state,
        action=chosen_action,
        cameras=seen,
        depth=depth,
        extras=(
            *(key for key in numbers if key not in (*chosen_state, *chosen_action)),
            *(key for camera, key in maps.items() if camera not in seen),
        ),
        texts=texts,
        left_out=left_out,
    )


def names_of(keys: Sequence[str], features: Features) -> tuple[str, ...]:
    """A name for each component of the features side by side: their own names, or numbered ones."""
    parts = {key: _component_names(key, features[key]) for key in keys}
    names = [name for part in parts.values() for name in part]
    if len(set(names)) < len(names):
        names = [f"{_short(key)}.{name}" for key, part in parts.items() for name in part]
    return tuple(names)


def is_depth(feature: Mapping[str, Any]) -> bool:
    """Whether LeRobot marks the feature as a depth map, in the present or in the older way."""
    marks = {**(feature.get("video_info") or {}), **(feature.get("info") or {})}
    return bool(marks.get("is_depth_map") or marks.get("video.is_depth_map"))


def row_shape(feature: Mapping[str, Any]) -> tuple[int, ...]:
    """The shape of one step: a feature of shape (1,) is one value."""
    shape = tuple(int(size) for size in feature["shape"])
    return () if shape == (1,) else shape


def _choose(
    kind: str,
    chosen: Sequence[str] | None,
    numbers: Sequence[str],
    whole: str,
    prefixes: tuple[str, ...],
    where: str,
) -> tuple[str, ...]:
    if chosen is None:
        return (whole,) if whole in numbers else tuple(key for key in numbers if key.startswith(prefixes))
    for key in chosen:
        if key not in numbers:
            raise InputError(f"{where} has no feature {key!r} for the {kind}: it has {', '.join(numbers) or 'none'}")
    return tuple(chosen)


def _component_names(key: str, feature: Mapping[str, Any]) -> tuple[str, ...]:
    names = feature.get("names")
    if isinstance(names, Mapping):
        # {"motors": [names]}, or {name: position}.
        lists = [value for value in names.values() if isinstance(value, list)]
        names = lists[0] if len(lists) == 1 else list(names)
    if isinstance(names, list) and len(names) == prod(feature["shape"]):
        return tuple(str(name) for name in names)
    return component_names(_short(key), row_shape(feature))


def _short(key: str) -> str:
    for prefix in (*STATE_PARTS, *ACTION_PARTS, "observation."):
        if key.startswith(prefix):
            return key.removeprefix(prefix)
    return key


def _depth_camera(key: str) -> str:
    name = own_names([key], CAMERA_PREFIXES)[key]
    return name.removesuffix("depth").rstrip("._") or name


def _is_number(feature: Mapping[str, Any]) -> bool:
    try:
        return np.dtype(feature["dtype"]).kind in "biuf"
    except TypeError:
        return False
