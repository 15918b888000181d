"""The targets that a network predicts for an action: the action, or its difference to the state at the chunk's start.

| component                    | unchanged                          | relative to the state s                    |
|------------------------------|------------------------------------|--------------------------------------------|
| a number                     | a                                  | a - s (openpi's DeltaActions)              |
| an angle that wraps          | cos a, sin a                       | a - s, in the shorter direction            |
| a rotation, absolute         | 6-D (Zhou et al. 2019)             | axis times angle of R_a R_s^-1, base frame |
| delta, velocity, force       | unchanged, also rotations          | -                                          |
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float

from vla.common.rotations import decode, encode
from vla.embodiment import Embodiment, Rotation
from vla.errors import InputError
from vla.kinematics.action_space import wrapped

RELATIVE, UNCHANGED = "relative", "unchanged"
PREDICTIONS = (RELATIVE, UNCHANGED)


def check_predictions(predict: str | Mapping[str, str]) -> None:
    """Raises InputError unless it is one of PREDICTIONS, or a mapping to them."""
    choices = predict.values() if isinstance(predict, Mapping) else (predict,)
    if bad := [choice for choice in choices if choice not in PREDICTIONS]:
        raise InputError(f"actions are predicted {' or '.join(PREDICTIONS)}, not {bad[0]!r}")


def relative_components(body: Embodiment, predict: str | Mapping[str, str]) -> tuple[bool, ...]:
    """Which action components are predicted relative to the state.

    Args:
        predict: "relative" for every position that the state measures, except grippers; "unchanged" for none; or a
            mapping of component names to one of these, with "relative" as the default of the others.

    Raises:
        InputError: for an unknown name or choice, and for a component that cannot be relative.
    """
    check_predictions(predict)
    by_name = predict if isinstance(predict, Mapping) else {}
    default = RELATIVE if isinstance(predict, Mapping) else predict
    if unknown := sorted(by_name.keys() - set(body.action)):
        raise InputError(f"predict: {body.name} has no action {unknown[0]!r}: it has {', '.join(body.action)}")
    can = [
        bool(position) and column is not None
        for position, column in zip(body.is_position_action, body.measured_by, strict=True)
    ]
    for rotation in body.rotations:
        for i in rotation.action:
            can[i] = bool(rotation.state) and bool(body.is_position_action[i])
    if wrong := [name for name, choice in by_name.items() if choice == RELATIVE and not can[body.action.index(name)]]:
        raise InputError(
            f"predict: {wrong[0]} of {body.name} cannot be relative to the state: it is not a measured position"
        )
    wanted = [
        by_name.get(name, UNCHANGED if gripper else default) == RELATIVE
        for name, gripper in zip(body.action, body.is_gripper, strict=True)
    ]
    return _complete_rotations(body, [a and b for a, b in zip(can, wanted, strict=True)])


def _complete_rotations(body: Embodiment, relative: Iterable[bool]) -> tuple[bool, ...]:
    """Components of a rotation are relative only if all of them are."""
    out = list(relative)
    for rotation in body.rotations:
        for i in rotation.action:
            out[i] = all(out[j] for j in rotation.action)
    return tuple(out)


@dataclass(frozen=True)
class ActionTargets:
    """Converts an embodiment's actions to the targets that a network predicts, and back.

    `relative`: whether each action component is predicted relative to the state.
    """

    body: Embodiment
    relative: tuple[bool, ...]

    @cached_property
    def _rotations(self) -> dict[int, Rotation]:
        """The rotations that are re-encoded, by their first component."""
        absolute = self.body.is_position_action
        return {min(r.action): r for r in self.body.rotations if absolute[r.action[0]]}

    @cached_property
    def _groups(self) -> list[tuple[str, tuple[int, ...], tuple[int, ...]]]:
        """Groups of components: their kind, their columns in the actions and their columns in the targets."""
        rotated = {i for rotation in self._rotations.values() for i in rotation.action}
        groups: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = []
        width = 0
        for i in range(len(self.body.action)):
            if i in self._rotations:
                kind, source = "rotation", self._rotations[i].action
                count = 3 if self.relative[i] else 6
            elif i in rotated:
                continue
            else:
                circular = bool(np.isfinite(self.body.action_period[i])) and not self.relative[i]
                kind, source, count = "angle" if circular else "number", (i,), 2 if circular else 1
            groups.append((kind, source, tuple(range(width, width + count))))
            width += count
        return groups

    @property
    def action_dim(self) -> int:
        """Number of values that the network predicts per step."""
        return self._groups[-1][2][-1] + 1 if self._groups else 0

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The action component of each target value."""
        return tuple(self.body.action[source[0]] for _, source, columns in self._groups for _ in columns)

    @cached_property
    def _plain(self) -> bool:
        """Whether every component is a number that does not wrap."""
        turns = bool(np.isfinite(self.body.action_period).any())
        return not turns and all(kind == "number" for kind, *_ in self._groups)

    def encode(
        self, actions: Float[np.ndarray, "*t h a"], state: Float[np.ndarray, "*t s"]
    ) -> Float[np.ndarray, "*t h w"]:
        """The targets of chunks that start at `state`."""
        origin = self._origin(state)[..., None, :]
        if self._plain:
            return actions - origin
        out = np.empty((*actions.shape[:-1], self.action_dim))
        for kind, source, columns in self._groups:
            values = actions[..., source]
            if kind == "rotation":
                values = self._encode_rotation(self._rotations[min(source)], values, state)
            elif kind == "angle":
                turns = values * (2 * np.pi / self.body.action_period[source[0]])
                values = np.concatenate([np.cos(turns), np.sin(turns)], axis=-1)
            else:
                values = values - origin[..., source]
                if np.isfinite(turn := self.body.action_period[source[0]]):
                    values = values - turn * np.round(values / turn)
            out[..., columns] = values
        return out

    def decode(
        self, targets: Float[np.ndarray, "*t h w"], state: Float[np.ndarray, "*t s"]
    ) -> Float[np.ndarray, "*t h a"]:
        """The actions of targets for a robot at `state`: the inverse of `encode`."""
        origin = self._origin(state)[..., None, :]
        if self._plain:
            return targets + origin
        out = np.empty((*targets.shape[:-1], len(self.body.action)))
        for kind, source, columns in self._groups:
            values = targets[..., columns]
            if kind == "rotation":
                values = self._decode_rotation(self._rotations[min(source)], values, state)
            elif kind == "angle":
                turn = self.body.action_period[source[0]]
                values = np.arctan2(values[..., 1:], values[..., :1]) * (turn / (2 * np.pi))
            else:
                values = values + origin[..., source]
            out[..., source] = values
        return wrapped(self.body, out)

    def _origin(self, state: Float[np.ndarray, "*t s"]) -> Float[np.ndarray, "*t a"]:
        """The state values that relative components are relative to; 0 elsewhere."""
        origin = np.zeros((*state.shape[:-1], len(self.body.action)))
        for i, (relative, column) in enumerate(zip(self.relative, self.body.measured_by, strict=True)):
            if relative and column is not None:
                origin[..., i] = state[..., column]
        return origin

    def _encode_rotation(
        self, rotation: Rotation, values: Float[np.ndarray, "*t h k"], state: Float[np.ndarray, "*t s"]
    ) -> Float[np.ndarray, "*t h m"]:
        value = decode(values, rotation.representation)
        if self.relative[rotation.action[0]]:
            out = encode(value * self._measured(rotation, state, values.shape[-2]).inv(), "axis_angle")
        else:
            out = encode(value, "rotation_6d")
        return out.reshape(*values.shape[:-1], -1)

    def _decode_rotation(
        self, rotation: Rotation, values: Float[np.ndarray, "*t h m"], state: Float[np.ndarray, "*t s"]
    ) -> Float[np.ndarray, "*t h k"]:
        if self.relative[rotation.action[0]]:
            value = decode(values, "axis_angle") * self._measured(rotation, state, values.shape[-2])
        else:
            value = decode(values, "rotation_6d")
        out = encode(value, rotation.representation)
        return out.reshape(*values.shape[:-1], -1)

    def _measured(self, rotation: Rotation, state: Float[np.ndarray, "*t s"], steps: int):  # type: ignore[no-untyped-def]
        """The rotation measured in `state`, repeated for each step."""
        values = np.repeat(state[..., None, list(rotation.state)], steps, axis=-2)
        return decode(values, rotation.state_representation)
