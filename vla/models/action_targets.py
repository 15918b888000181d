"""What a network predicts of an action: the action itself, or its distance from the state at the chunk's start.

| component                    | unchanged                          | relative to the state s                    |
|------------------------------|------------------------------------|--------------------------------------------|
| a number                     | a                                  | a - s (openpi's DeltaActions)              |
| an angle that wraps          | cos a, sin a                       | a - s, the shorter way round               |
| a rotation, absolute         | 6-D (Zhou et al. 2019)             | axis times angle of R_a R_s^-1, base frame |
| delta, velocity, force       | as it is, rotations too            | -                                          |
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


def relative_components(body: Embodiment, predict: str | Mapping[str, str]) -> tuple[bool, ...]:
    """Which action components are predicted relative to the state.

    "relative": every position that the state measures, but no gripper; "unchanged": none; a mapping says so of
    components by their names, and the others are as with "relative". Raises InputError for a name or a choice that is
    unknown, and for a component that cannot be relative.
    """
    chosen = predict if isinstance(predict, Mapping) else {}
    default = RELATIVE if isinstance(predict, Mapping) else predict
    if bad := [choice for choice in (default, *chosen.values()) if choice not in PREDICTIONS]:
        raise InputError(f"actions are predicted {' or '.join(PREDICTIONS)}, not {bad[0]!r}")
    if unknown := sorted(chosen.keys() - set(body.action)):
        raise InputError(f"predict: {body.name} has no action {unknown[0]!r}: it has {', '.join(body.action)}")
    can = [
        bool(position) and at is not None
        for position, at in zip(body.is_position_action, body.measured_by, strict=True)
    ]
    for rotation in body.rotations:
        for i in rotation.action:
            can[i] = bool(rotation.state) and bool(body.is_position_action[i])
    if wrong := [name for name, choice in chosen.items() if choice == RELATIVE and not can[body.action.index(name)]]:
        raise InputError(
            f"predict: {wrong[0]} of {body.name} cannot be relative to the state: it is no position that is measured"
        )
    wanted = [
        chosen.get(name, UNCHANGED if gripper else default) == RELATIVE
        for name, gripper in zip(body.action, body.is_gripper, strict=True)
    ]
    return _whole(body, [a and b for a, b in zip(can, wanted, strict=True)])


def _whole(body: Embodiment, relative: Iterable[bool]) -> tuple[bool, ...]:
    """The components of a rotation are so together."""
    out = list(relative)
    for rotation in body.rotations:
        for i in rotation.action:
            out[i] = all(out[j] for j in rotation.action)
    return tuple(out)


@dataclass(frozen=True)
class ActionTargets:
    """The way of an embodiment's actions to the numbers that a network predicts, and back.

    `relative` says of each action component whether it is predicted relative to the state.
    """

    body: Embodiment
    relative: tuple[bool, ...]

    @cached_property
    def _rotations(self) -> dict[int, Rotation]:
        """The rotations that are re-encoded, each at its first component."""
        absolute = self.body.is_position_action
        return {min(r.action): r for r in self.body.rotations if absolute[r.action[0]]}

    @cached_property
    def _parts(self) -> list[tuple[str, tuple[int, ...], tuple[int, ...]]]:
        """What each part is, its columns among the actions and among the targets."""
        inside = {i for rotation in self._rotations.values() for i in rotation.action}
        parts: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = []
        width = 0
        for i in range(len(self.body.action)):
            if i in self._rotations:
                kind, at = "rotation", self._rotations[i].action
                count = 3 if self.relative[i] else 6
            elif i in inside:
                continue
            else:
                circular = bool(np.isfinite(self.body.action_period[i])) and not self.relative[i]
                kind, at, count = "angle" if circular else "number", (i,), 2 if circular else 1
            parts.append((kind, at, tuple(range(width, width + count))))
            width += count
        return parts

    @property
    def action_dim(self) -> int:
        """Numbers that the network predicts a step."""
        return self._parts[-1][2][-1] + 1 if self._parts else 0

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The action component that each number is of."""
        return tuple(self.body.action[at[0]] for _, at, columns in self._parts for _ in columns)

    @cached_property
    def _plain(self) -> bool:
        turns = bool(np.isfinite(self.body.action_period).any())
        return not turns and all(kind == "number" for kind, *_ in self._parts)

    def encode(
        self, actions: Float[np.ndarray, "*t h a"], state: Float[np.ndarray, "*t s"]
    ) -> Float[np.ndarray, "*t h w"]:
        """The targets of chunks that start in `state`."""
        origin = self._origin(state)[..., None, :]
        if self._plain:
            return actions - origin
        out = np.empty((*actions.shape[:-1], self.action_dim))
        for kind, at, columns in self._parts:
            values = actions[..., at]
            if kind == "rotation":
                values = self._encode_rotation(self._rotations[min(at)], values, state)
            elif kind == "angle":
                turns = values * (2 * np.pi / self.body.action_period[at[0]])
                values = np.concatenate([np.cos(turns), np.sin(turns)], axis=-1)
            else:
                values = values - origin[..., at]
                if np.isfinite(turn := self.body.action_period[at[0]]):
                    values = values - turn * np.round(values / turn)
            out[..., columns] = values
        return out

    def decode(
        self, targets: Float[np.ndarray, "*t h w"], state: Float[np.ndarray, "*t s"]
    ) -> Float[np.ndarray, "*t h a"]:
        """The actions that these say of a robot in `state`: what `encode` undoes."""
        origin = self._origin(state)[..., None, :]
        if self._plain:
            return targets + origin
        out = np.empty((*targets.shape[:-1], len(self.body.action)))
        for kind, at, columns in self._parts:
            values = targets[..., columns]
            if kind == "rotation":
                values = self._decode_rotation(self._rotations[min(at)], values, state)
            elif kind == "angle":
                turn = self.body.action_period[at[0]]
                values = np.arctan2(values[..., 1:], values[..., :1]) * (turn / (2 * np.pi))
            else:
                values = values + origin[..., at]
            out[..., at] = values
        return wrapped(self.body, out)

    def _origin(self, state: Float[np.ndarray, "*t s"]) -> Float[np.ndarray, "*t a"]:
        """What relative components are told from; 0 elsewhere."""
        origin = np.zeros((*state.shape[:-1], len(self.body.action)))
        for i, (relative, at) in enumerate(zip(self.relative, self.body.measured_by, strict=True)):
            if relative and at is not None:
                origin[..., i] = state[..., at]
        return origin

    def _encode_rotation(
        self, rotation: Rotation, values: Float[np.ndarray, "*t h k"], state: Float[np.ndarray, "*t s"]
    ) -> Float[np.ndarray, "*t h m"]:
        turned = decode(values, rotation.representation)
        if self.relative[rotation.action[0]]:
            out = encode(turned * self._measured(rotation, state, values.shape[-2]).inv(), "axis_angle")
        else:
            out = encode(turned, "rotation_6d")
        return out.reshape(*values.shape[:-1], -1)

    def _decode_rotation(
        self, rotation: Rotation, values: Float[np.ndarray, "*t h m"], state: Float[np.ndarray, "*t s"]
    ) -> Float[np.ndarray, "*t h k"]:
        if self.relative[rotation.action[0]]:
            turned = decode(values, "axis_angle") * self._measured(rotation, state, values.shape[-2])
        else:
            turned = decode(values, "rotation_6d")
        out = encode(turned, rotation.representation)
        return out.reshape(*values.shape[:-1], -1)

    def _measured(self, rotation: Rotation, state: Float[np.ndarray, "*t s"], steps: int):  # type: ignore[no-untyped-def]
        """The rotation of each step's start."""
        values = np.repeat(state[..., None, list(rotation.state)], steps, axis=-2)
        return decode(values, rotation.state_representation)
