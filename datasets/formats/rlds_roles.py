"""Assigns the features of an RLDS step to roles: action, state, camera, depth, language or extra (see `rlds`)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vla.datasets.formats.columns import select, short_names
from vla.datasets.formats.image_columns import camera_of_depth
from vla.datasets.formats.rlds_features import Feature

OBSERVATION = "observation/"
LANGUAGE = (
    "language_instruction",
    "observation/natural_language_instruction",
    "observation/language_instruction",
    "natural_language_instruction",
    "observation/instruction",
    "episode_metadata/language_instruction",
)
ACTION_FIRST = ("world_vector", "rotation_delta", "gripper_closedness_action")
ACTION_LAST = ("terminate_episode",)
STATES = (("state",), ("proprio",), ("base_pose_tool_reached", "gripper_closed"))


@dataclass(frozen=True)
class Choice:
    """The user's choice of features for state, action and cameras. None: the usual ones, and all cameras."""

    state: Sequence[str] | None = None
    action: Sequence[str] | None = None
    cameras: Sequence[str] | None = None


@dataclass(frozen=True)
class Roles:
    """The features of each role, by the names in the episode."""

    action: Mapping[str, str]
    state: Mapping[str, str]
    cameras: Mapping[str, str]
    depth: Mapping[str, str]
    language: tuple[str, ...]
    """The feature of the instruction, then those of paraphrases."""
    texts: tuple[str, ...]
    """Other texts."""
    extras: Mapping[str, str]
    left_out: Mapping[str, str]
    """The reason for each feature that is not read."""

    @classmethod
    def of(cls, step: Mapping[str, Feature], once: Mapping[str, Feature], choice: Choice, where: str) -> Roles:
        """The roles of the features per step (`step`) and per episode (`once`).

        Raises InputError if a chosen feature does not exist, or there is no action.
        """
        names = short_names(step, (OBSERVATION,))
        numbers = {name: names[name] for name, f in step.items() if f.is_numbers and name not in LANGUAGE}
        moves = {name: text.removeprefix("action.") for name, text in numbers.items()}
        actions = select("action", _action(step) if choice.action is None else choice.action, moves, where)
        states = select("state", _state(step) if choice.state is None else choice.state, numbers, where)
        cameras = {names[name]: name for name, feature in step.items() if feature.is_camera}
        maps = {names[name]: name for name, feature in step.items() if feature.is_depth}
        depth = {camera: maps[short] for camera, short in camera_of_depth(list(maps), cameras).items()}
        visual = {*cameras.values(), *depth.values()}
        if choice.cameras is not None:
            cameras = select("cameras", choice.cameras, {name: short for short, name in cameras.items()}, where)
            depth = {camera: name for camera, name in depth.items() if camera in cameras}
        unchosen = visual - {*cameras.values(), *depth.values()}
        written = tuple(name for name, feature in step.items() if feature.kind == "text")
        language = tuple(name for name in LANGUAGE if name in step or name in once)
        language += tuple(n for n in written if any(re.fullmatch(rf"{re.escape(base)}_\d+", n) for base in LANGUAGE))
        texts = tuple(name for name in written if name not in language)
        used = {*actions.values(), *states.values(), *cameras.values(), *depth.values(), *language, *texts}
        rest = {n: f for n, f in step.items() if n not in used | unchosen}
        extras = {names[n]: n for n, f in rest.items() if f.kind in ("image", "tensor")}
        return cls(
            action=actions,
            state=states,
            cameras=dict(sorted(cameras.items())),
            depth=depth,
            language=language,
            texts=texts,
            extras=dict(sorted(extras.items())),
            left_out={
                name: "its rows are no numbers of one shape"
                for name, feature in {**step, **once}.items()
                if feature.kind == "other"
            }
            | dict.fromkeys(sorted(unchosen), "not among the chosen cameras"),
        )


def _action(step: Mapping[str, Feature]) -> Sequence[str]:
    if single := next((name for name in ("action", "actions") if name in step), None):
        return (single,)
    fields = {n.removeprefix("action/"): n for n, f in step.items() if n.startswith("action/") and f.is_numbers}
    middle = sorted(fields.keys() - {*ACTION_FIRST, *ACTION_LAST})
    return [fields[name] for name in (*ACTION_FIRST, *middle, *ACTION_LAST) if name in fields]


def _state(step: Mapping[str, Feature]) -> Sequence[str]:
    vectors = [n for n, f in sorted(step.items()) if n.startswith(OBSERVATION) and f.is_vector and "embedding" not in n]
    for names in STATES:
        if all(OBSERVATION + name in vectors for name in names):
            return [OBSERVATION + name for name in names]
    return vectors
