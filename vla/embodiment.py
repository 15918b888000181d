"""What a robot looks like to a policy: its cameras, state, actions and what they mean, limits and rate."""

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
"""What an action component is: a target in the state's own coordinates; the change during one step; a rate in its unit
a second; a force, torque or effort."""
FRAMES = ("base", "tool")


@dataclass(frozen=True)
class Rotation:
    """Action components that are one rotation together, and the state components that measure it.

    `action` and `state` are positions in the embodiment's tuples; `state` is empty where nothing measures it. `frame`
    says in whose axes a rotation that is a step is: the robot's base or its tool.
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
        """The full turn of each of its components; 0 where these are no angles."""
        if not EULER.fullmatch(self.representation):
            return 0.0
        return 360.0 if self.representation.endswith("_deg") else 2 * math.pi


@dataclass(frozen=True)
class Embodiment:
    """A robot's interface.

    `state` and `action` name each component with its unit, e.g. `"elbow_flex [rad]"`; `action_low` and `action_high`
    bound each action component in that unit: a robot's limits, or of recordings the extremes that were measured.

    What an action component means stands in `action_mode` (`ACTION_MODES`; default: all absolute), `action_state` (the
    state component that measures what it commands, None where none does; default: the one of its name),
    `action_turn` (of an angle that starts again after a full turn, that turn in its unit; 0 for all else), `grippers`
    (names of action components), and `rotations`. What holds, limits, interpolates or normalises actions asks these.
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
    """Of a robot whose actions are poses of its tool: how an arm's joints bring about what it says."""

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
        taken = [i for rotation in self.rotations for i in rotation.action]
        measured = [i for rotation in self.rotations for i in rotation.state]
        if len(set(taken)) != len(taken) or not all(0 <= i < len(self.action) for i in taken):
            raise InputError(f"embodiment {self.name}: rotations must be of different action components")
        if not all(0 <= i < len(self.state) for i in measured):
            raise InputError(f"embodiment {self.name}: a rotation is measured by state components that are not there")
        for rotation in self.rotations:
            if len({self.action_mode[i] for i in rotation.action}) > 1:
                raise InputError(f"embodiment {self.name}: the components of a rotation have one action mode")

    @cached_property
    def is_position_action(self) -> Bool[np.ndarray, "a"]:
        """Which action components are positions: targets that stay in force until the next command."""
        return np.array([mode == ABSOLUTE for mode in self.action_mode], bool)

    @cached_property
    def is_gripper(self) -> Bool[np.ndarray, "a"]:
        return np.isin(self.action, self.grippers)

    @cached_property
    def measured_by(self) -> tuple[int | None, ...]:
        """The position in the state of what measures each action component."""
        return tuple(None if name is None else self.state.index(name) for name in self.action_state)

    @cached_property
    def action_period(self) -> Float[np.ndarray, "a"]:
        """The full turn of each absolute angle that wraps, in its unit; infinity for all else."""
        turns = np.array(self.action_turn, float)
        for rotation in self.rotations:
            turns[list(rotation.action)] = rotation.turn
        return np.where(self.is_position_action & (turns > 0), turns, math.inf)

    def hold_action(self, state: Float[np.ndarray, "*t s"]) -> Float[np.ndarray, "*t a"]:
        """What holding still commands in `state`: positions as measured, no change, no velocity, no force.

        A position that nothing measures is 0, or its nearest limit: a caller that knows the last command holds that.
        """
        held = np.zeros((*state.shape[:-1], len(self.action)))
        for i, at in enumerate(self.measured_by):
            if self.is_position_action[i]:
                held[..., i] = np.clip(0.0, self.action_low[i], self.action_high[i]) if at is None else state[..., at]
        for rotation in self.rotations:
            if rotation.state and self.is_position_action[rotation.action[0]]:
                held[..., list(rotation.action)] = convert(
                    state[..., list(rotation.state)], rotation.state_representation, rotation.representation
                )
        return held

    def clip(self, actions: Float[np.ndarray, "*h a"]) -> Float[np.ndarray, "*h a"]:
        """Within the limits; rotations and angles that wrap have none."""
        free = np.isfinite(self.action_period)
        for rotation in self.rotations:
            free = free | np.isin(np.arange(len(self.action)), rotation.action)
        return np.where(free, actions, np.clip(actions, self.action_low, self.action_high))

    def check(self, other: Embodiment, fewer_cameras: bool = False) -> None:
        """Raises InputError naming the first component in which `other` is another kind of robot.

        Components with their units, what the actions mean, the set of cameras and the rate make a robot; its limits, or
        the ranges that recordings happen to span, and the order of the cameras do not. With `fewer_cameras` the other
        may have some of the cameras alone.
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
                at = next(i for i, (a, b) in enumerate(zip(mine, theirs, strict=True)) if a != b)
                component = self.action[at] if field.startswith("action_") else f"{field}[{at}]"
                mine, theirs = f"{component} is {mine[at]}", theirs[at]
            raise InputError(
                f"embodiment {self.name} does not match {other.name}: {field}: {mine}, of the other {theirs}"
            )

    def cameras_fit(self, other: Embodiment, fewer: bool = False) -> bool:
        """Whether the other's cameras are these, in any order; with `fewer` also some of these, at least one."""
        mine, theirs = set(self.cameras), set(other.cameras)
        return mine == theirs or (fewer and bool(theirs) and theirs < mine)

    def union(self, others: Iterable[Embodiment], fewer_cameras: bool = False) -> Embodiment:
        """This robot with the ranges of all, and the wrapping angles and rotations that any of them knows.

        Recordings in which a joint never comes round do not show these. Raises InputError when one is another kind of
        robot (`check`).
        """
        union = self
        for other in others:
            union, other = union._with_rotations_of(other), other._with_rotations_of(union)
            union.check(other, fewer_cameras)
            low, high = map(min, union.action_low, other.action_low), map(max, union.action_high, other.action_high)
            union = replace(union, action_low=tuple(low), action_high=tuple(high))
        return union

    def _with_rotations_of(self, other: Embodiment) -> Embodiment:
        """With those wrapping angles and rotations of another that this one says nothing of."""
        if other.state != self.state or other.action != self.action:
            return self
        taken = {i for rotation in self.rotations for i in rotation.action}
        more = tuple(rotation for rotation in other.rotations if taken.isdisjoint(rotation.action))
        turns = tuple(mine or theirs for mine, theirs in zip(self.action_turn, other.action_turn, strict=True))
        # Those of a robot that learns of no other keep their order, in which a checkpoint has them.
        rotations = tuple(sorted(self.rotations + more, key=lambda r: r.action)) if more else self.rotations
        return replace(self, rotations=rotations, action_turn=turns)

    def check_action(self, action: Float[np.ndarray, "*h a"]) -> None:
        """Raises InputError when an action has the wrong width or is not finite, naming the component."""
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
        """Points (`Episode.points`) that lie in each camera's image."""
        parts = np.split(points, len(self.cameras))
        inside = [((part >= 0) & (part < 1)).all(axis=1) for part in parts]
        return {camera: part[seen] for camera, part, seen in zip(self.cameras, parts, inside, strict=True)}

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Embodiment:
        """What `to_dict` gave, also of before actions said what they mean: see `declares_actions`."""
        fields = _with_tuples(values)
        fields["rotations"] = tuple(Rotation(**_with_tuples(rotation)) for rotation in fields.get("rotations", ()))
        if (about := fields.get("kinematics")) is not None:
            fields["kinematics"] = ToolKinematics.from_dict(about)
        if not declares_actions(values):
            fields["action_mode"] = tuple(ABSOLUTE if name in values["state"] else "delta" for name in values["action"])
            fields["grippers"] = tuple(name for name in values["action"] if "gripper" in name)
        return cls(**fields)


def declares_actions(values: Mapping[str, Any]) -> bool:
    """Whether a stored embodiment says what its actions are.

    One of before that does not. It was taken to be absolute where a state component has the action's name and a step
    elsewhere, and a gripper by its name: checkpoints made so go on so, and stores want `vla data migrate`.
    """
    return "action_mode" in values


def _with_tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has lists alone."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
