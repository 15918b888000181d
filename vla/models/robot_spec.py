"""The specification of each robot that a model controls: normalisation of states and actions, horizon and cameras."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float

from vla.common.start_region import StartRegion
from vla.common.statistics import Statistics
from vla.embodiment import Embodiment
from vla.errors import InputError
from vla.models.action_targets import ActionTargets
from vla.models.action_tokenizers.bins import UniformBins
from vla.models.normalization import BOUND, Normalizer


@dataclass(frozen=True)
class RobotSpec:
    """Conversion of an embodiment's states and actions to the model's values, fixed when training starts.

    `state` normalises states, and `action` normalises the targets that the network predicts
    (`vla.models.action_targets`). `relative` marks the action components whose targets are relative to the state at the
    chunk's start; by default every position that a state component of the same name measures.
    """

    embodiment: Embodiment
    horizon: int
    state: Normalizer
    action: Normalizer
    statistics_hash: str
    """Hash of the statistics of states and targets from which the ranges were computed; empty where unknown."""
    points: int = 0
    """Number of points predicted before an action (`Example.points`); `<eos>` twice for one not in its image."""
    bins: UniformBins = UniformBins()
    relative: tuple[bool, ...] = ()
    images: str | None = None
    """Preprocessing mode of camera images (`vla.models.choices.IMAGE_MODES`); None: as the backbone was
    trained."""
    image_tokens: int | None = None
    """Maximum number of image tokens per camera image; None: a default suitable for a control loop."""
    history: tuple[int, ...] = ()
    """Ages of past frames of every camera [steps], oldest first. There are no frames before an episode's start."""
    fewer_cameras: bool = False
    """Whether cameras may be missing, for a policy trained with `plan.camera_dropout`."""
    statistics: Mapping[str, Statistics] | None = field(default=None, compare=False, repr=False)
    """Statistics of "state" and "action" (the targets), which later training keeps or merges with its own."""
    start: StartRegion | None = field(default=None, compare=False, repr=False)
    """Region in which the demonstrations start; None where unknown."""
    padded_dim: int | None = None
    """Action dimension to which heads of continuous values pad chunks; None: the largest among the model's robots. A
    robot keeps its own when a wider one joins, so that its chunks do not change."""

    def __post_init__(self) -> None:
        if not self.relative:
            body = self.embodiment
            named = [
                a and m == n for a, m, n in zip(body.is_position_action, body.action_state, body.action, strict=True)
            ]
            object.__setattr__(self, "relative", tuple(map(bool, named)))
        width = self.targets.action_dim
        if len(self.action.low) != width or len(self.state.low) != len(self.embodiment.state):
            raise InputError(
                f"{self.name}: {len(self.state.low)} and {len(self.action.low)} ranges for "
                f"{len(self.embodiment.state)} components of the state and {width} targets"
            )

    @property
    def name(self) -> str:
        """Name of the embodiment."""
        return self.embodiment.name

    @cached_property
    def targets(self) -> ActionTargets:
        """Conversion of actions to the targets that the network predicts, before normalisation."""
        return ActionTargets(self.embodiment, self.relative)

    @property
    def action_dim(self) -> int:
        """Number of target values per step; for rotations and wrapping angles it differs from the action dimension."""
        return self.targets.action_dim

    @property
    def history_seconds(self) -> tuple[float, ...]:
        """`history` in seconds."""
        return tuple(steps / self.embodiment.control_hz for steps in self.history)

    @property
    def point_tokens(self) -> int:
        """Number of coordinate tokens before an action."""
        return 2 * self.points

    @property
    def action_tokens(self) -> int:
        """Number of values of a chunk."""
        return self.horizon * self.action_dim

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RobotSpec:
        """The inverse of `to_dict`; missing entries of earlier versions have defaults."""
        return cls(
            embodiment=Embodiment.from_dict(values["embodiment"]),
            horizon=values["horizon"],
            state=Normalizer(tuple(values["state"]["low"]), tuple(values["state"]["high"])),
            action=Normalizer(tuple(values["action"]["low"]), tuple(values["action"]["high"])),
            statistics_hash=values["statistics_hash"],
            points=values["points"],
            bins=UniformBins(**values["bins"]),
            relative=tuple(values.get("relative", ())),
            images=values.get("images"),
            image_tokens=values.get("image_tokens"),
            history=tuple(values.get("history", ())),
            fewer_cameras=values.get("fewer_cameras", False),
            statistics={kind: Statistics.from_dict(one) for kind, one in (values.get("statistics") or {}).items()}
            or None,
            start=None if values.get("start") is None else StartRegion.from_dict(values["start"]),
            padded_dim=values.get("padded_dim"),
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        statistics = None
        if self.statistics is not None:
            statistics = {kind: one.to_dict() for kind, one in self.statistics.items()}
        return {
            "embodiment": self.embodiment.to_dict(),
            "horizon": self.horizon,
            "state": asdict(self.state),
            "action": asdict(self.action),
            "statistics_hash": self.statistics_hash,
            "points": self.points,
            "bins": asdict(self.bins),
            "relative": list(self.relative),
            "images": self.images,
            "image_tokens": self.image_tokens,
            "history": list(self.history),
            "fewer_cameras": self.fewer_cameras,
            "statistics": statistics,
            "start": None if self.start is None else self.start.to_dict(),
            **({} if self.padded_dim is None else {"padded_dim": self.padded_dim}),
        }

    def encode_state(self, state: Float[np.ndarray, "s"], clipped: bool = True) -> Float[np.ndarray, "s"]:
        """The normalised state, where `clipped` to the range of the bins.

        Raises:
            InputError: when it does not fit the embodiment or is not finite.
        """
        names = self.embodiment.state
        if len(state) != len(names):
            raise InputError(f"the state has {len(state)} components, not those of {self.name}: {names}")
        for name, value in zip(names, state, strict=True):
            if not np.isfinite(value):
                raise InputError(f"state component {name} is not finite: {value}")
        normalized = self.state.normalize(state)
        return np.clip(normalized, -self.bins.limit, self.bins.limit) if clipped else normalized

    def normalize_actions(
        self, actions: Float[np.ndarray, "h a"], state: Float[np.ndarray, "s"]
    ) -> Float[np.ndarray, "h w"]:
        """The normalised targets of actions that start at `state`.

        Raises:
            InputError: when they do not fit the embodiment or are not finite.
        """
        self.embodiment.check_action(actions)
        targets = self.targets.encode(np.asarray(actions, np.float64), np.asarray(state, np.float64))
        return np.clip(self.action.normalize(targets), -BOUND, BOUND)

    def denormalize_actions(
        self, normalized: Float[np.ndarray, "h w"], state: Float[np.ndarray, "s"]
    ) -> Float[np.ndarray, "h a"]:
        """The actions of normalised targets for a robot at `state`, in the embodiment's units and limits."""
        targets = self.action.denormalize(np.asarray(normalized, np.float64))
        return self.embodiment.clip(self.targets.decode(targets, np.asarray(state, np.float64)))

    def check(self, data: RobotSpec) -> None:
        """Raises InputError that names the first difference between this specification and that of `data`."""
        self.embodiment.check(data.embodiment)
        for name in ("horizon", "points", "bins", "relative", "history"):
            one, other = getattr(self, name), getattr(data, name)
            if one != other:
                raise InputError(f"{self.name}: {name} is {one} in the checkpoint, {other} for the data")
        for kind, names in (("state", self.embodiment.state), ("action", self.targets.names)):
            ours, theirs = getattr(self, kind), getattr(data, kind)
            for i, component in enumerate(names):
                for name, one, other in (
                    ("the range's start", ours.low[i], theirs.low[i]),
                    ("the range's end", ours.high[i], theirs.high[i]),
                ):
                    if one != other:
                        raise InputError(f"{kind} {component}: {name} is {one} in the checkpoint, {other} in the data")
        if self.statistics_hash and self.statistics_hash != data.statistics_hash:
            raise InputError(f"{self.name}: the data have other extremes, or another number of steps")


def with_cameras(
    robots: Sequence[RobotSpec],
    images: str | Mapping[str, str] | None,
    image_tokens: int | Mapping[str, int] | None,
) -> list[RobotSpec]:
    """The robots with options for their camera images, for all robots or by name.

    Raises:
        InputError: for an unknown robot, or options without robots.
    """
    known = {robot.name for robot in robots}
    for option, value in (("images", images), ("image_tokens", image_tokens)):
        if isinstance(value, Mapping) and (unknown := sorted(value.keys() - known)):
            raise InputError(
                f"{option} names {', '.join(unknown)}; the robots are {', '.join(sorted(known)) or 'none'}"
            )
        if value is not None and not robots:
            raise InputError(f"{option} is for a robot's cameras, and there is no robot: leave it out")
    return [
        replace(
            robot,
            images=images.get(robot.name) if isinstance(images, Mapping) else images,
            image_tokens=image_tokens.get(robot.name) if isinstance(image_tokens, Mapping) else image_tokens,
        )
        for robot in robots
    ]


def check_together(robots: Sequence[RobotSpec]) -> None:
    """Raises InputError when one model cannot control all robots: they must share horizon and bins."""
    for one, other in zip(robots, robots[1:], strict=False):
        for name in ("horizon", "bins"):
            if getattr(one, name) != getattr(other, name):
                raise InputError(f"{one.name} and {other.name} differ in their {name}: one model has the same for all")
    names = [robot.name for robot in robots]
    if duplicates := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"two robots have the name {', '.join(duplicates)}")


def check_same(checkpoint: Sequence[RobotSpec], data: Sequence[RobotSpec]) -> None:
    """Raises InputError that names the first difference between the robots of a checkpoint and those of the data."""
    ours, theirs = ({robot.name: robot for robot in robots} for robots in (checkpoint, data))
    if ours.keys() != theirs.keys():
        names = [", ".join(sorted(robots)) or "no robot" for robots in (ours, theirs)]
        raise InputError(f"the checkpoint drives {names[0]}, the data are of {names[1]}")
    for name, robot in ours.items():
        robot.check(theirs[name])
