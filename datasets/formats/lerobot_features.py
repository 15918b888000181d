"""What the features of a LeRobot dataset are in an episode.

| LeRobot feature                               | episode                                                       |
|-----------------------------------------------|---------------------------------------------------------------|
| observation.state, or all observation.state.* | state, side by side in the schema's order; also `state` and   |
|                                               | `states`, of openpi and AgiBot, and what begins with them     |
| action, or all action.*                       | action, likewise, also `actions`; features called delta or    |
|                                               | relative are extras where there are others                    |
| images and videos                             | images; depth maps go to depth, or to extras without a camera |
| timestamp, task                               | time, instruction and spans                                   |
| vla.*                                         | time, points, chunks, extras, as `lerobot_columns` says       |
| other numbers and truth values                | extras, a feature of shape (1,) as one value a step           |
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

from vla.datasets.formats.columns import MissingChoice, component_names, own_names
from vla.errors import InputError

Features = Mapping[str, Mapping[str, Any]]
"""LeRobot's schema: dtype, shape and names by feature."""

COUNTERS = ("timestamp", "frame_index", "episode_index", "index", "task_index")
"""Features that every dataset has, and that LeRobot writes itself."""
OWN = "vla."
"""Before the names of features in which we keep what LeRobot has no place for."""
TIME, POINTS, CHUNKS = "vla.time", "vla.points", "vla.chunks"
EXTRA = "vla.extra."
"""Before the name of an extra that LeRobot would take for something else by its own name."""
KNOWN = "vla.known."
"""Before another feature's name: which of its values are not NaN, with which LeRobot's statistics fail."""
WHOLE = {"state": ("observation.state", "state", "observation.states", "states"), "action": ("action", "actions")}
"""Names of the one feature that is it, LeRobot's first."""
PARTS = {kind: tuple(f"{name}." for name in names) for kind, names in WHOLE.items()}
"""How the names of features that are it side by side begin."""
CHANGES = frozenset({"delta", "deltas", "relative", "rel"})
"""Words in the name of a feature that is a change of what another one holds."""
NO_STATE = ("next.", "reward", "done", "success", "is_", "annotation.", *PARTS["action"])
"""How the names of features begin that are not offered as the state."""
CAMERA_PREFIXES = ("observation.images.", "observation.depth.", "observation.", "images.", "video.")


@dataclass(frozen=True)
class FeatureMap:
    """Which features make up an episode; `left_out` says why a feature is not among them.

    Features are called by their names in the files; `renamed` has the names that some of them go by here.
    """

    state: tuple[str, ...]
    action: tuple[str, ...]
    cameras: Mapping[str, str]
    """Feature by camera."""
    depth: Mapping[str, str]
    """Feature by camera."""
    extras: Mapping[str, str]
    """Feature by the extra's name."""
    texts: tuple[str, ...]
    left_out: Mapping[str, str]
    remarks: tuple[str, ...] = ()
    """What the user should know of the choice."""
    renamed: Mapping[str, str] = field(default_factory=dict)

    def name(self, feature: str) -> str:
        return self.renamed.get(feature, feature)

    def to_dict(self) -> dict[str, Any]:
        """In JSON values and by the names here, for the provenance; extras and texts are what is left of the schema."""
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
    """The part that each feature has. `state`, `action` and `cameras` choose among several; `where` names the dataset.

    `rename` gives features, or cameras, other names; all choices are by the new ones. Raises InputError for a chosen
    name that there is not, and MissingChoice where nothing is known to be the action, or to be the state although
    there are numbers beside the action.
    """
    renamed = _renamed(features, rename or {}, where)
    files = {renamed.get(key, key): key for key in features if not key.startswith(OWN)}
    known = {name: features[key] for name, key in files.items()}
    numbers = [key for key in known if key not in COUNTERS and _is_number(known[key])]
    chosen = {"state": _choose("state", state, numbers, where), "action": _choose("action", action, numbers, where)}
    _check_chosen(chosen, numbers, where)
    visual = [key for key, feature in known.items() if feature["dtype"] in ("image", "video")]
    colour = own_names([key for key in visual if not is_depth(known[key])], CAMERA_PREFIXES)
    by_camera = {colour[key]: key for key in visual if key in colour}
    for camera in cameras or ():
        if camera not in by_camera:
            raise InputError(f"{where} has no camera {camera!r}: it has {', '.join(by_camera) or 'none'}")
    seen = by_camera if cameras is None else {camera: by_camera[camera] for camera in cameras}
    maps = {_depth_camera(key): key for key in visual if is_depth(known[key])}
    depth = {camera: key for camera, key in maps.items() if camera in seen}
    texts = tuple(key for key, feature in known.items() if feature["dtype"] == "string")
    used = {*COUNTERS, *numbers, *visual, *texts}
    left_out = {
        key: f"its dtype {feature['dtype']} is neither number, image nor text"
        for key, feature in known.items()
        if key not in used
    }
    left_out |= {key: "not among the chosen cameras" for key in by_camera.values() if key not in seen.values()}
    others = [key for key in numbers if key not in (*chosen["state"], *chosen["action"])]
    changes = [key for key in others if _is_change(key) and key.startswith(PARTS["action"])] if action is None else []
    return FeatureMap(
        state=tuple(files[key] for key in chosen["state"]),
        action=tuple(files[key] for key in chosen["action"]),
        cameras={camera: files[key] for camera, key in seen.items()},
        depth={camera: files[key] for camera, key in depth.items()},
        extras={key: files[key] for key in (*others, *(key for camera, key in maps.items() if camera not in seen))}
        | {key.removeprefix(EXTRA): key for key in features if key.startswith(EXTRA)},
        texts=tuple(files[key] for key in texts),
        left_out=left_out,
        remarks=(f"not in the action, but extras, since they are changes: {', '.join(changes)}",) if changes else (),
        renamed=renamed,
    )


def _renamed(features: Features, rename: Mapping[str, str], where: str) -> dict[str, str]:
    """The new name of each feature that gets one; a key may also be a camera's name, and then the value is one."""
    visual = [key for key, feature in features.items() if feature["dtype"] in ("image", "video")]
    cameras = {name: key for key, name in own_names(visual, CAMERA_PREFIXES).items()}
    found: dict[str, str] = {}
    for old, new in rename.items():
        key = old if old in features else cameras.get(old)
        if key is None or key in COUNTERS:
            raise InputError(f"rename={{{old}: {new}}}: {where} has no feature {old!r}: it has {', '.join(features)}")
        found[key] = f"{CAMERA_PREFIXES[0]}{new}" if key in visual and "." not in new else new
    names = [found.get(key, key) for key in features]
    if double := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"rename: two features of {where} would be called {double!r}")
    return found


def names_of(keys: Sequence[str], features: Features, renamed: Mapping[str, str]) -> tuple[str, ...]:
    """A name for each component of the features side by side: their own names, or numbered ones."""
    parts = {renamed.get(key, key): _component_names(renamed.get(key, key), features[key]) for key in keys}
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


def _choose(kind: str, asked: Sequence[str] | None, numbers: Sequence[str], where: str) -> tuple[str, ...]:
    if asked is not None:
        for key in asked:
            if key not in numbers:
                known = ", ".join(numbers) or "none"
                raise InputError(f"{where} has no feature {key!r} for the {kind}: it has {known}")
        return tuple(asked)
    if whole := next((name for name in WHOLE[kind] if name in numbers), None):
        return (whole,)
    parts = [key for key in numbers if key.startswith(PARTS[kind])]
    # A change of a joint beside the joint itself is the same again, in other units.
    return tuple([key for key in parts if kind == "state" or not _is_change(key)] or parts)


def _check_chosen(chosen: Mapping[str, Sequence[str]], numbers: Sequence[str], where: str) -> None:
    """Raises MissingChoice, with features that may be it, where there is no action, or no state of several numbers."""
    taken = [key for keys in chosen.values() for key in keys]
    left = [key for key in numbers if key not in taken]
    offered: dict[str, list[str]] = {}
    if not chosen["action"]:
        named = [[key for key in left if word in key] for word in ("action", "command", "target")]
        offered["action"] = next(filter(None, named), left[-1:])
    if not chosen["state"]:
        states = [key for key in left if key not in offered.get("action", ()) and not key.startswith(NO_STATE)]
        offered |= {"state": states} if states else {}
    if not offered:
        return
    kinds = " and the ".join(sorted(offered, reverse=True))
    if not all(offered.values()):
        raise InputError(f"{where} has no feature of numbers for the action: it has {', '.join(numbers) or 'none'}")
    raise MissingChoice(f"{where} has no feature that is known to be the {kinds}", offered)


def _is_change(key: str) -> bool:
    return not CHANGES.isdisjoint(re.split(r"[._/]", key))


def _component_names(key: str, feature: Mapping[str, Any]) -> tuple[str, ...]:
    names = _listed(feature.get("names"))
    if len(names) != prod(feature["shape"]):
        return component_names(_short(key), row_shape(feature))
    counts = Counter(names)
    return tuple(name if counts[name] == 1 else f"{name}[{i}]" for i, name in enumerate(names))


def _listed(names: Any) -> list[str]:
    """The names in a list, a list in a list, {name: position}, {"motors": names} or {"left": names, "right": names}."""
    if isinstance(names, Mapping):
        if sorted(map(str, names.values())) == sorted(map(str, range(len(names)))):
            return sorted(map(str, names), key=lambda name: int(names[name]))
        parts = {str(part): _listed(inside) for part, inside in names.items()}
        if not any(parts.values()):
            return list(parts)
        flat = [name for inside in parts.values() for name in inside]
        if len(set(flat)) == len(flat):
            return flat
        return [f"{part}.{name}" for part, inside in parts.items() for name in inside]
    if isinstance(names, list) and len(names) == 1 and isinstance(names[0], list | Mapping):
        return _listed(names[0])
    return list(map(str, names)) if isinstance(names, list) else []


def _short(key: str) -> str:
    for prefix in (*PARTS["state"], *PARTS["action"], "observation."):
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
