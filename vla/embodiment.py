"""The interface between a robot and a policy: cameras, state, actions with their meaning, limits and rate."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from vla.common.kinematic_chain import ToolKinematics
from vla.common.rotations import EULER, components_of, convert
from vla.errors import InputError

ABSOLUTE = "absolute"
ACTION_MODES = (ABSOLUTE, "delta", "velocity", "force")
"""Modes of an action component: a target in the coordinates of the state; the change during one step; a rate in its
unit per second; a force, torque or effort."""
FRAMES = ("base", "tool")


@dataclass(frozen=True)
class Rotation:
    """Action components that together form a rotation, and the state components that measure it.

    Attributes:
        action: Indices of the action components.
        representation: Representation of the action (`vla.common.rotations`).
        state: Indices of the state components; empty if the rotation is not measured.
        state_representation: Representation of the state; default: that of the action.
        frame: Axes of a rotation with the action mode delta: "base" or "tool".
    """

    action: tuple[int, ...]
    representation: str
    state: tuple[int, ...] = ()
    state_representation: str = ""
    frame: str = "base"

    def __post_init__(self) -> None:
        if self.state and not self.state_representation:
            object.__setattr__(self, "state_representation", self.representation)
        for at, name in ((self.action, self.representation), (self.state, self.state_representation)):
            if at and len(at) != (count := components_of(name)):
                raise InputError(f"a rotation as {name} has {count} components, not {len(at)}")
        if not self.action or self.frame not in FRAMES:
            raise InputError(f"a rotation has action components and one of the frames {', '.join(FRAMES)}")

    @property
    def turn(self) -> float:
        """The full turn of each component, in its unit; 0 if the components are not angles."""
        if not EULER.fullmatch(self.representation):
            return 0.0
        return 360.0 if self.representation.endswith("_deg") else 2 * math.pi


@dataclass(frozen=True)
class Embodiment:
    """A robot's interface.

    Attributes:
        name: Name of the robot.
        cameras: Names of the cameras.
        state: Name of each state component with its unit, e.g. "elbow_flex [rad]".
        action: Name of each action component with its unit.
        action_low: Lower bound of each action component in its unit: the robot's limit, or the minimum in recordings.
        action_high: Upper bound of each action component.
        control_hz: Rate of the actions [Hz].
        action_mode: Mode of each action component (`ACTION_MODES`); default: all absolute.
        action_state: Name of the state component that measures each action component, None if there is none; default:
            the one with the same name.
        action_turn: Full turn of each angle that wraps, in its unit; 0 for other components.
        grippers: Names of the action components that are grippers.
        rotations: Action components that form rotations.
        kinematics: Kinematics of a robot whose actions are tool poses, which maps them to joints.
    """

    name: str
    cameras: tuple[str, ...]
    state: tuple[str, ...]
    action: tuple[str, ...]
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    control_hz: float
    action_mode: tuple[str, ...] = ()
    action_state: tuple[str | None, ...] = ()
    action_turn: tuple[float, ...] = ()
    grippers: tuple[str, ...] = ()
    rotations: tuple[Rotation, ...] = ()
    kinematics: ToolKinematics | None = None

    def __post_init__(self) -> None:
        count = len(self.action)
        measured = tuple(name if name in self.state else None for name in self.action)
        defaults = {
            "action_mode": (ABSOLUTE,) * count,
            "action_state": measured,
            "action_turn": (0.0,) * count,
        }
        for field, default in defaults.items():
            if not getattr(self, field):
                object.__setattr__(self, field, default)
        for field in ("action_low", "action_high", *defaults):
            if len(getattr(self, field)) != count:
                raise InputError(
                    f"embodiment {self.name}: {field} has {len(getattr(self, field))} values for {count} actions"
                )
        self._check_meaning()

    def _check_meaning(self) -> None:
        if unknown := [mode for mode in self.action_mode if mode not in ACTION_MODES]:
            raise InputError(
                f"embodiment {self.name}: {unknown[0]!r} is no action mode: choose {', '.join(ACTION_MODES)}"
            )
        for field, known in (("action_state", self.state), ("grippers", self.action)):
            if unknown := [name for name in getattr(self, field) if name is not None and name not in known]:
                raise InputError(f"embodiment {self.name}: {field} names {unknown[0]!r}; there are {', '.join(known)}")
        rotated = [i for rotation in self.rotations for i in rotation.action]
        measured = [i for rotation in self.rotations for i in rotation.state]
        if len(set(rotated)) != len(rotated) or not all(0 <= i < len(self.action) for i in rotated):
            raise InputError(f"embodiment {self.name}: rotations must be of different action components")
        if not all(0 <= i < len(self.state) for i in measured):
            raise InputError(f"embodiment {self.name}: a rotation is measured by state components that do not exist")
        for rotation in self.rotations:
            if len({self.action_mode[i] for i in rotation.action}) > 1:
                raise InputError(f"embodiment {self.name}: the components of a rotation have one action mode")

    @cached_property
    def is_position_action(self) -> Bool[np.ndarray, "a"]:
        """Which action components are positions: targets that remain valid until the next command."""
        return np.array([mode == ABSOLUTE for mode in self.action_mode], bool)

    @cached_property
    def is_gripper(self) -> Bool[np.ndarray, "a"]:
        """Which action components are grippers."""
        return np.isin(self.action, self.grippers)

    @cached_property
    def measured_by(self) -> tuple[int | None, ...]:
        """The index of the state component that measures each action component; None if it is not measured."""
        return tuple(None if name is None else self.state.index(name) for name in self.action_state)

    @cached_property
    def action_period(self) -> Float[np.ndarray, "a"]:
        """The full turn of each absolute angle that wraps, in its unit; infinity for other components."""
        turns = np.array(self.action_turn, float)
        for rotation in self.rotations:
            turns[list(rotation.action)] = rotation.turn
        return np.where(self.is_position_action & (turns > 0), turns, math.inf)

    def hold_action(self, state: Float[np.ndarray, "*t s"]) -> Float[np.ndarray, "*t a"]:
        """The action that holds the robot at `state`: positions as measured; no change, velocity or force.

        A position that is not measured is 0, limited to its range; a caller that knows the last command should hold
        that instead.
        """
        held = np.zeros((*state.shape[:-1], len(self.action)))
        for i, index in enumerate(self.measured_by):
            if self.is_position_action[i]:
                default = np.clip(0.0, self.action_low[i], self.action_high[i])
                held[..., i] = default if index is None else state[..., index]
        for rotation in self.rotations:
            if rotation.state and self.is_position_action[rotation.action[0]]:
                held[..., list(rotation.action)] = convert(
                    state[..., list(rotation.state)], rotation.state_representation, rotation.representation
                )
        return held

    def clip(self, actions: Float[np.ndarray, "*h a"]) -> Float[np.ndarray, "*h a"]:
        """The actions clipped to the limits; rotations and angles that wrap have no limits."""
        unlimited = np.isfinite(self.action_period)
        for rotation in self.rotations:
            unlimited = unlimited | np.isin(np.arange(len(self.action)), rotation.action)
        return np.where(unlimited, actions, np.clip(actions, self.action_low, self.action_high))

    def check(self, other: Embodiment, fewer_cameras: bool = False) -> None:
        """Raises InputError that names the first difference, if `other` is not the same kind of robot.

        Components with their units, the meaning of the actions, the set of cameras and the rate must be equal. Limits,
        which are the ranges of the data in recordings, and the order of the cameras may differ.

        Args:
            other: The embodiment to compare with.
            fewer_cameras: Whether `other` may have a subset of the cameras.
        """
        if not self.cameras_fit(other, fewer_cameras):
            raise InputError(
                f"embodiment {self.name} does not match {other.name}: cameras: {', '.join(self.cameras) or 'none'}, "
                f"of the other {', '.join(other.cameras) or 'none'}"
            )
        for field in ("state", "action", "action_mode", "action_turn", "rotations", "control_hz"):
            mine, theirs = getattr(self, field), getattr(other, field)
            if mine == theirs:
                continue
            if isinstance(mine, tuple) and len(mine) == len(theirs) and field != "rotations":
                index = next(i for i, (a, b) in enumerate(zip(mine, theirs, strict=True)) if a != b)
                component = self.action[index] if field.startswith("action_") else f"{field}[{index}]"
                mine, theirs = f"{component} is {mine[index]}", theirs[index]
            raise InputError(
                f"embodiment {self.name} does not match {other.name}: {field}: {mine}, of the other {theirs}"
            )

    def cameras_fit(self, other: Embodiment, fewer: bool = False) -> bool:
        """Whether the other has the same cameras, in any order, or with `fewer` a subset of at least one."""
        mine, theirs = set(self.cameras), set(other.cameras)
        return mine == theirs or (fewer and bool(theirs) and theirs < mine)

    def union(self, others: Iterable[Embodiment], fewer_cameras: bool = False) -> Embodiment:
        """This robot with the union of all action ranges, and all declared wrapping angles and rotations.

        Recordings in which a joint never completes a turn may not declare its wrapping.

        Raises:
            InputError: One of the others is not the same kind of robot (`check`).
        """
        union = self
        for other in others:
            union, other = union._with_rotations_of(other), other._with_rotations_of(union)
            try:
                union.check(other, fewer_cameras)
            except InputError as error:
                raise InputError(f"{error}{_unit_advice(union, other)}") from error
            low, high = map(min, union.action_low, other.action_low), map(max, union.action_high, other.action_high)
            union = replace(union, action_low=tuple(low), action_high=tuple(high))
        return union

    def _with_rotations_of(self, other: Embodiment) -> Embodiment:
        """This robot with the wrapping angles and rotations of another that it does not declare itself."""
        if other.state != self.state or other.action != self.action:
            return self
        rotated = {i for rotation in self.rotations for i in rotation.action}
        added = tuple(rotation for rotation in other.rotations if rotated.isdisjoint(rotation.action))
        turns = tuple(mine or theirs for mine, theirs in zip(self.action_turn, other.action_turn, strict=True))
        # Without additions the order stays that of the checkpoint.
        rotations = tuple(sorted(self.rotations + added, key=lambda r: r.action)) if added else self.rotations
        return replace(self, rotations=rotations, action_turn=turns)

    def check_action(self, action: Float[np.ndarray, "*h a"]) -> None:
        """Raises InputError if an action has the wrong number of components, or one that is not finite."""
        if action.shape[-1] != len(self.action):
            raise InputError(
                f"action has {action.shape[-1]} components, "
                f"embodiment {self.name} has {len(self.action)}: {self.action}"
            )
        bad = ~np.isfinite(action)
        if bad.any():
            component = int(np.argwhere(bad)[0][-1])
            raise InputError(f"action component {self.action[component]} is not finite: {action[bad][0]}")

    def by_camera(self, points: Float[np.ndarray, "p 2"]) -> dict[str, Float[np.ndarray, "n 2"]]:
        """The points (`Episode.points`) of one step inside each camera's image."""
        points_per_camera = np.split(points, len(self.cameras))
        visible = [((p >= 0) & (p < 1)).all(axis=1) for p in points_per_camera]
        return {camera: p[mask] for camera, p, mask in zip(self.cameras, points_per_camera, visible, strict=True)}

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Embodiment:
        """The inverse of `to_dict`; also reads old formats without action modes (`declares_actions`)."""
        fields = _with_tuples(values)
        fields["rotations"] = tuple(Rotation(**_with_tuples(rotation)) for rotation in fields.get("rotations", ()))
        if (kinematics := fields.get("kinematics")) is not None:
            fields["kinematics"] = ToolKinematics.from_dict(kinematics)
        if not declares_actions(values):
            fields["action_mode"] = tuple(ABSOLUTE if name in values["state"] else "delta" for name in values["action"])
            fields["grippers"] = tuple(name for name in values["action"] if "gripper" in name)
        return cls(**fields)


def _unit_advice(one: Embodiment, other: Embodiment) -> str:
    """Advice for data of one robot if only units are missing in one of them; otherwise empty."""
    pairs = [*zip(one.state, other.state, strict=False), *zip(one.action, other.action, strict=False)]
    differing = {mine: theirs for mine, theirs in pairs if mine != theirs}
    if not differing or any(mine.split(" [")[0] != theirs.split(" [")[0] for mine, theirs in differing.items()):
        return ""
    bare, full = min(next(iter(differing.items())), next(iter(differing.items()))[::-1], key=lambda pair: len(pair[0]))
    if "[" in bare:
        return ""
    return f"; if {bare} is in that unit too, name it: vla data rename STORE 'components={{{bare}: {full!r}}}'"


def declares_actions(values: Mapping[str, Any]) -> bool:
    """Whether a stored embodiment declares its action modes.

    Older versions did not. They treated an action as absolute if a state component has its name, otherwise as delta,
    and detected grippers by name. Old checkpoints are still read this way; stores need `vla data migrate`.
    """
    return "action_mode" in values


def _with_tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with lists, as JSON has them, converted to tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
