"""What a model knows of each robot that it drives: how its states and actions are normalised, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from vla.actions.bins import UniformBins
from vla.embodiment import Embodiment
from vla.errors import InputError
from vla.normalize import QuantileNormalizer


@dataclass(frozen=True)
class RobotSpec:
    """What turns this embodiment's states and actions into a model's numbers: fixed when training starts."""

    embodiment: Embodiment
    horizon: int
    state: QuantileNormalizer
    action: QuantileNormalizer
    statistics_hash: str
    """Of the statistics of states and actions that it was made from; empty where that is not known."""
    points: int = 0
    """How many points the model says before an action (`Example.points`), `<eos>` twice for one not in its image."""
    bins: UniformBins = UniformBins()

    @property
    def name(self) -> str:
        return self.embodiment.name

    @property
    def width(self) -> int:
        """Components of an action."""
        return len(self.embodiment.action)

    @property
    def point_tokens(self) -> int:
        return 2 * self.points

    @property
    def action_tokens(self) -> int:
        return self.horizon * self.width

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RobotSpec:
        return cls(
            embodiment=Embodiment.from_dict(values["embodiment"]),
            horizon=values["horizon"],
            state=QuantileNormalizer(tuple(values["state"]["low"]), tuple(values["state"]["high"])),
            action=QuantileNormalizer(tuple(values["action"]["low"]), tuple(values["action"]["high"])),
            statistics_hash=values["statistics_hash"],
            points=values["points"],
            bins=UniformBins(**values["bins"]),
        )

    def encode_state(self, state: Float[np.ndarray, "s"]) -> Float[np.ndarray, "s"]:
        """The state normalised, and clipped to where the bins end.

        Raises InputError when it does not fit the embodiment or is not finite.
        """
        names = self.embodiment.state
        if len(state) != len(names):
            raise InputError(f"the state has {len(state)} components, not those of {self.name}: {names}")
        for name, value in zip(names, state, strict=True):
            if not np.isfinite(value):
                raise InputError(f"state component {name} is not finite: {value}")
        return np.clip(self.state.normalize(state), -self.bins.limit, self.bins.limit)

    def normalize_actions(
        self, actions: Float[np.ndarray, "h a"], state: Float[np.ndarray, "s"]
    ) -> Float[np.ndarray, "h a"]:
        """Actions that start from `state`: a joint's target is told as its distance from the joint.

        Raises InputError when they do not fit the embodiment or are not finite.
        """
        self.embodiment.check_action(actions)
        return self.action.normalize(actions - self.embodiment.anchor(np.asarray(state, np.float64)))

    def denormalize_actions(
        self, normalized: Float[np.ndarray, "h a"], state: Float[np.ndarray, "s"]
    ) -> Float[np.ndarray, "h a"]:
        """What these say of a robot in `state`, in the embodiment's units and limits."""
        actions = self.action.denormalize(normalized) + self.embodiment.anchor(np.asarray(state, np.float64))
        return np.clip(actions, self.embodiment.action_low, self.embodiment.action_high)

    def check(self, data: RobotSpec) -> None:
        """Raises InputError that names the first component in which the data differ from what this was made from."""
        self.embodiment.check(data.embodiment)
        for name in ("horizon", "points", "bins"):
            one, other = getattr(self, name), getattr(data, name)
            if one != other:
                raise InputError(f"{self.name}: {name} is {one} in the checkpoint, {other} for the data")
        for kind in ("state", "action"):
            ours, theirs = getattr(self, kind), getattr(data, kind)
            for i, component in enumerate(getattr(self.embodiment, kind)):
                for name, one, other in (
                    ("q01", ours.low[i], theirs.low[i]),
                    ("q99", ours.high[i], theirs.high[i]),
                ):
                    if one != other:
                        raise InputError(f"{kind} {component}: {name} is {one} in the checkpoint, {other} in the data")
        if self.statistics_hash and self.statistics_hash != data.statistics_hash:
            raise InputError(f"{self.name}: the data have other extremes, or another number of steps")


def check_together(robots: Sequence[RobotSpec]) -> None:
    """Raises InputError when one model cannot drive all of them: they share its horizon and its bins."""
    for one, other in zip(robots, robots[1:], strict=False):
        for name in ("horizon", "bins"):
            if getattr(one, name) != getattr(other, name):
                raise InputError(f"{one.name} and {other.name} differ in their {name}: one model has one for all")
    names = [robot.name for robot in robots]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"two robots have the name {', '.join(twice)}")


def check_same(checkpoint: Sequence[RobotSpec], data: Sequence[RobotSpec]) -> None:
    """Raises InputError that says in what the robots of a checkpoint and those of the data differ."""
    ours, theirs = ({robot.name: robot for robot in robots} for robots in (checkpoint, data))
    if ours.keys() != theirs.keys():
        told = [", ".join(sorted(robots)) or "no robot" for robots in (ours, theirs)]
        raise InputError(f"the checkpoint drives {told[0]}, the data are of {told[1]}")
    for name, robot in ours.items():
        robot.check(theirs[name])
