"""What a robot looks like to a policy: its cameras, state, actions, limits and rate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from vla.errors import InputError


@dataclass(frozen=True)
class Embodiment:
    """A robot's interface. Two embodiments that are equal can share data and policies.

    `state` and `action` name each component with its unit, e.g. `"elbow_flex [rad]"`;
    `action_low` and `action_high` bound each action component in that unit.
    """

    name: str
    cameras: tuple[str, ...]
    state: tuple[str, ...]
    action: tuple[str, ...]
    action_low: tuple[float, ...]
    action_high: tuple[float, ...]
    control_hz: float

    def __post_init__(self) -> None:
        for field in ("action_low", "action_high"):
            count = len(getattr(self, field))
            if count != len(self.action):
                raise InputError(f"embodiment {self.name}: {field} has {count} values for {len(self.action)} actions")

    def check(self, other: Embodiment) -> None:
        """Raises InputError naming the first component in which `other` differs from this embodiment."""
        for field in ("cameras", "state", "action", "action_low", "action_high", "control_hz"):
            mine, theirs = getattr(self, field), getattr(other, field)
            if mine == theirs:
                continue
            if isinstance(mine, tuple) and len(mine) == len(theirs):
                at = next(i for i, (a, b) in enumerate(zip(mine, theirs, strict=True)) if a != b)
                component = self.action[at] if field.startswith("action") else f"{field}[{at}]"
                mine, theirs = f"{component} is {mine[at]}", theirs[at]
            raise InputError(f"embodiment {self.name} does not match {other.name}: {field}: {mine}, there {theirs}")

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

    def anchor(self, state: Float[np.ndarray, "*t s"]) -> Float[np.ndarray, "*t a"]:
        """What each action component is told from: its own present value, 0 where the state has none of that name."""
        values = np.zeros((*state.shape[:-1], len(self.action)))
        for i, name in enumerate(self.action):
            if name in self.state:
                values[..., i] = state[..., self.state.index(name)]
        return values

    def by_camera(self, points: Float[np.ndarray, "p 2"]) -> dict[str, Float[np.ndarray, "n 2"]]:
        """Points (`Episode.points`) that lie in each camera's image."""
        parts = np.split(points, len(self.cameras))
        inside = [((part >= 0) & (part < 1)).all(axis=1) for part in parts]
        return {camera: part[seen] for camera, part, seen in zip(self.cameras, parts, inside, strict=True)}

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Embodiment:
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**fields)
