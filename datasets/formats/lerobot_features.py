"""Maps the features of a LeRobot dataset to the fields of an episode.

| LeRobot feature                               | episode                                                       |
|-----------------------------------------------|---------------------------------------------------------------|
| observation.state, or all observation.state.* | state, concatenated in the schema's order; also `state` and   |
|                                               | `states`, of openpi and AgiBot, and features below them       |
| action, or all action.*                       | action, likewise, also `actions`; features named delta or     |
|                                               | relative are extras if there are others                       |
| images and videos                             | images; depth maps go to depth, or to extras without a camera |
| timestamp, task                               | time, instruction and spans                                   |
| vla.*                                         | time, points, chunks, extras, as written by `lerobot_columns` |
| other numbers and booleans                    | extras, a feature of shape (1,) as one value per step         |
| texts                                         | info["steps"], a list by name                                 |
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np

from vla.datasets.formats.columns import MissingChoice, component_names, short_names
from vla.errors import InputError

Features = Mapping[str, Mapping[str, Any]]
"""LeRobot's schema: dtype, shape and names of each feature."""

COUNTERS = ("timestamp", "frame_index", "episode_index", "index", "task_index")
"""Features of every dataset, which LeRobot writes itself."""
OWN_PREFIX = "vla."
"""Prefix of features for information that LeRobot cannot represent."""
TIME, POINTS, CHUNKS = "vla.time", "vla.points", "vla.chunks"
EXTRA_PREFIX = "vla.extra."
"""Prefix of extras whose names have another meaning in LeRobot."""
KNOWN_PREFIX = "vla.known."
"""Prefix of the mask of known values of a feature. LeRobot's statistics do not support NaN."""
SINGLE_NAMES = {
    "state": ("observation.state", "state", "observation.states", "states"),
    "action": ("action", "actions"),
}
"""Names of a single feature with the complete state or action, LeRobot's first."""
PART_PREFIXES = {kind: tuple(f"{name}." for name in names) for kind, names in SINGLE_NAMES.items()}
"""Prefixes of features that form the state or the action when concatenated."""
CHANGES = frozenset({"delta", "deltas", "relative", "rel"})
"""Words in the names of features that are changes of another feature."""
NO_STATE = ("next.", "reward", "done", "success", "is_", "annotation.", *PART_PREFIXES["action"])
"""Prefixes of features that are not suggested as the state."""
CAMERA_PREFIXES = ("observation.images.", "observation.depth.", "observation.", "images.", "video.")


@dataclass(frozen=True)
class FeatureMap:
    """The features of each field of an episode; `left_out` has the reasons for features that are not read.

    Features are identified by their names in the files. `renamed` has the user's new names of features.
    """

    state: tuple[str, ...]
    action: tuple[str, ...]
    cameras: Mapping[str, str]
    """The feature of each camera."""
    depth: Mapping[str, str]
    """The depth feature of each camera."""
    extras: Mapping[str, str]
    """The feature of each extra."""
    texts: tuple[str, ...]
    left_out: Mapping[str, str]
    remarks: tuple[str, ...] = ()
    """Remarks for the user."""
    renamed: Mapping[str, str] = field(default_factory=dict)

    def name(self, feature: str) -> str:
        """The feature's new name, or its name in the files."""
        return self.renamed.get(feature, feature)

    def to_dict(self) -> dict[str, Any]:
        """The map in JSON values with the new names, for the provenance. Extras and texts follow from the schema."""
        return {
            "state": [self.name(key) for key in self.state],
            "action": [self.name(key) for key in self.action],
            "cameras": {camera: self.name(key) for camera, key in self.cameras.items()},
            "depth": {camera: self.name(key) for camera, key in self.depth.items()},
            "left_out": dict(self.left_out),
            "renamed": dict(self.renamed),
        }


def map_features(
    features: Features,
    where: str,
    state: Sequence[str] | None = None,
    action: Sequence[str] | None = None,
    cameras: Sequence[str] | None = None,
    rename: Mapping[str, str] | None = None,
) -> FeatureMap:
    """Maps the features of a dataset to the fields of an episode.

    Args:
        features: the schema.
        where: the dataset's name for messages.
        state: the features to concatenate as the state. None: the standard ones.
        action: the features to concatenate as the action. None: the standard ones.
        cameras: the cameras to read. None: all.
        rename: new names of features or cameras, {old: new}. The other options use the new names.

    Raises:
        MissingChoice: the action is not known, or the state, although there are further features of numbers.
        InputError: a name does not exist.
    """
    renamed = _renamed(features, rename or {}, where)
    files = {renamed.get(key, key): key for key in features if not key.startswith(OWN_PREFIX)}
    named = {name: features[key] for name, key in files.items()}
    numbers = [key for key in named if key not in COUNTERS and _is_number(named[key])]
    selected = {"state": _choose("state", state, numbers, where), "action": _choose("action", action, numbers, where)}
    _check_selected(selected, numbers, where)
    visual = [key for key, feature in named.items() if feature["dtype"] in ("image", "video")]
    color = short_names([key for key in visual if not is_depth(named[key])], CAMERA_PREFIXES)
    by_camera = {color[key]: key for key in visual if key in color}
    for camera in cameras or ():
        if camera not in by_camera:
            raise InputError(f"{where} has no camera {camera!r}: it has {', '.join(by_camera) or 'none'}")
    selected_cameras = by_camera if cameras is None else {camera: by_camera[camera] for camera in cameras}
    maps = {_depth_camera(key): key for key in visual if is_depth(named[key])}
    depth = {camera: key for camera, key in maps.items() if camera in selected_cameras}
    texts = tuple(key for key, feature in named.items() if feature["dtype"] == "string")
    supported = {*COUNTERS, *numbers, *visual, *texts}
    left_out = {
        key: f"its dtype {feature['dtype']} is neither number, image nor text"
        for key, feature in named.items()
        if key not in supported
    }
    left_out |= {
        key: "not among the chosen cameras" for key in by_camera.values() if key not in selected_cameras.values()
    }
    others = [key for key in numbers if key not in (*selected["state"], *selected["action"])]
    changes = (
        [key for key in others if _is_change(key) and key.startswith(PART_PREFIXES["action"])] if action is None else []
    )
    return FeatureMap(
        state=tuple(files[key] for key in selected["state"]),
        action=tuple(files[key] for key in selected["action"]),
        cameras={camera: files[key] for camera, key in selected_cameras.items()},
        depth={camera: files[key] for camera, key in depth.items()},
        extras={
            key: files[key]
            for key in (*others, *(key for camera, key in maps.items() if camera not in selected_cameras))
        }
        | {key.removeprefix(EXTRA_PREFIX): key for key in features if key.startswith(EXTRA_PREFIX)},
        texts=tuple(files[key] for key in texts),
        left_out=left_out,
        remarks=(f"extras and not part of the action, since they are changes: {', '.join(changes)}",)
        if changes
        else (),
        renamed=renamed,
    )


def _renamed(features: Features, rename: Mapping[str, str], where: str) -> dict[str, str]:
    """The new names of features. A key of `rename` may also be a camera's name; the value then is one, too."""
    visual = [key for key, feature in features.items() if feature["dtype"] in ("image", "video")]
    cameras = {name: key for key, name in short_names(visual, CAMERA_PREFIXES).items()}
    renamed: dict[str, str] = {}
    for old, new in rename.items():
        key = old if old in features else cameras.get(old)
        if key is None or key in COUNTERS:
            raise InputError(f"rename={{{old}: {new}}}: {where} has no feature {old!r}: it has {', '.join(features)}")
        renamed[key] = f"{CAMERA_PREFIXES[0]}{new}" if key in visual and "." not in new else new
    names = [renamed.get(key, key) for key in features]
    if double := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"rename: two features of {where} would be called {double!r}")
    return renamed


def names_of(keys: Sequence[str], features: Features, renamed: Mapping[str, str]) -> tuple[str, ...]:
    """The component names of the concatenated features: those in the schema, or numbered ones."""
    by_feature = {renamed.get(key, key): _component_names(renamed.get(key, key), features[key]) for key in keys}
    names = [name for components in by_feature.values() for name in components]
    if len(set(names)) < len(names):
        names = [f"{_short(key)}.{name}" for key, components in by_feature.items() for name in components]
    return tuple(names)


def is_depth(feature: Mapping[str, Any]) -> bool:
    """Whether LeRobot marks the feature as a depth map, in the current or in the older form."""
    marks = {**(feature.get("video_info") or {}), **(feature.get("info") or {})}
    return bool(marks.get("is_depth_map") or marks.get("video.is_depth_map"))


def row_shape(feature: Mapping[str, Any]) -> tuple[int, ...]:
    """The shape of one step: a feature of shape (1,) is one value."""
    shape = tuple(int(size) for size in feature["shape"])
    return () if shape == (1,) else shape


def _choose(kind: str, requested: Sequence[str] | None, numbers: Sequence[str], where: str) -> tuple[str, ...]:
    if requested is not None:
        for key in requested:
            if key not in numbers:
                available = ", ".join(numbers) or "none"
                raise InputError(f"{where} has no feature {key!r} for the {kind}: it has {available}")
        return tuple(requested)
    if single := next((name for name in SINGLE_NAMES[kind] if name in numbers), None):
        return (single,)
    components = [key for key in numbers if key.startswith(PART_PREFIXES[kind])]
    # A change of a joint is redundant next to the joint itself.
    return tuple([key for key in components if kind == "state" or not _is_change(key)] or components)


def _check_selected(selected: Mapping[str, Sequence[str]], numbers: Sequence[str], where: str) -> None:
    """Raises MissingChoice, with possible features, if there is no action, or no state although there are numbers."""
    used = [key for keys in selected.values() for key in keys]
    unused = [key for key in numbers if key not in used]
    offered: dict[str, list[str]] = {}
    if not selected["action"]:
        matches = [[key for key in unused if word in key] for word in ("action", "command", "target")]
        relatives = [key for key in unused if _first_word(key) == _first_word(unused[-1])]
        offered["action"] = next(filter(None, matches), relatives if len(relatives) < len(unused) else unused[-1:])
    if not selected["state"]:
        states = [key for key in unused if key not in offered.get("action", ()) and not key.startswith(NO_STATE)]
        offered |= {"state": states} if states else {}
    if not offered:
        return
    kinds = " and the ".join(sorted(offered, reverse=True))
    if not all(offered.values()):
        raise InputError(f"{where} has no feature of numbers for the action: it has {', '.join(numbers) or 'none'}")
    raise MissingChoice(f"{where} has no feature that is known to be the {kinds}", offered)


def _first_word(key: str) -> str:
    return re.split(r"[._/]", key)[0]


def _is_change(key: str) -> bool:
    return not CHANGES.isdisjoint(re.split(r"[._/]", key))


def _component_names(key: str, feature: Mapping[str, Any]) -> tuple[str, ...]:
    names = _listed(feature.get("names"))
    if len(names) != prod(feature["shape"]):
        return component_names(_short(key), row_shape(feature))
    counts = Counter(names)
    return tuple(name if counts[name] == 1 else f"{name}[{i}]" for i, name in enumerate(names))


def _listed(names: Any) -> list[str]:
    """The names in a list, a nested list, {name: position}, {"motors": names} or {"left": names, "right": names}."""
    if isinstance(names, Mapping):
        if sorted(map(str, names.values())) == sorted(map(str, range(len(names)))):
            return sorted(map(str, names), key=lambda name: int(names[name]))
        groups = {str(group): _listed(members) for group, members in names.items()}
        if not any(groups.values()):
            return list(groups)
        flat = [name for members in groups.values() for name in members]
        if len(set(flat)) == len(flat):
            return flat
        return [f"{group}.{name}" for group, members in groups.items() for name in members]
    if isinstance(names, list) and len(names) == 1 and isinstance(names[0], list | Mapping):
        return _listed(names[0])
    return list(map(str, names)) if isinstance(names, list) else []


def _short(key: str) -> str:
    for prefix in (*PART_PREFIXES["state"], *PART_PREFIXES["action"], "observation."):
        if key.startswith(prefix):
            return key.removeprefix(prefix)
    return key


def _depth_camera(key: str) -> str:
    name = short_names([key], CAMERA_PREFIXES)[key]
    return name.removesuffix("depth").rstrip("._") or name


def _is_number(feature: Mapping[str, Any]) -> bool:
    try:
        return np.dtype(feature["dtype"]).kind in "biuf"
    except TypeError:
        return False
