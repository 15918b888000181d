"""Continues the training of a policy, with its weights, head and ranges, on data of robots that it already controls."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vla.common.statistics import Statistics
from vla.errors import InputError
from vla.models.choices import KEEP, MERGE, check_statistics
from vla.models.normalization import QUANTILE, Normalizer, methods_of
from vla.models.robot_spec import RobotSpec
from vla.models.vla import VLA


@dataclass(frozen=True)
class Ranges:
    """Options for the normalisation ranges of a policy whose training continues.

    Attributes:
        statistics: "keep" (the default) for the checkpoint's ranges, with which its weights were trained; "estimate"
            for those of the new data; "merge" for those of both together.
        predict, normalization: as in `robot_specs`; None where not set.
    """

    statistics: str | None = None
    predict: str | Mapping[str, str] | None = None
    normalization: str | Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        check_statistics(self.statistics)

    def check_unused(self, backbone: str) -> None:
        """Raises InputError if `statistics` is set, for a backbone that is not a policy of these robots."""
        if self.statistics is not None:
            raise InputError(f"statistics={self.statistics}: {backbone} is not a policy of this robot to continue")


def continued(name: str, base: VLA, robots: Sequence[RobotSpec], head: Mapping[str, Any], ranges: Ranges) -> VLA:
    """The model `base` of the checkpoint `name`, prepared for data of `robots` that it already controls.

    Prints the source of each robot's ranges.

    Raises:
        InputError: where the data and the checkpoint do not match; the message names the difference.
    """
    processor = base.processor
    assert processor.head is not None
    if (has := processor.head.settings["kind"]) != head["kind"]:
        raise InputError(f"{name} has the action head {has}, not {head['kind']}: give a vision-language model")
    known = {robot.name: robot for robot in processor.robots}
    if unknown := sorted({robot.name for robot in robots} - known.keys()):
        raise InputError(f"{name} drives {', '.join(known)}, and not {unknown[0]}: give a vision-language model")
    for data in robots:
        before = known[data.name].history
        if data.history and data.history != before:
            print(f"{data.name}: a history of {_steps(data.history)} in place of {_steps(before)}")
        try:
            known[data.name] = _spec(known[data.name], data, ranges)
        except InputError as error:
            raise InputError(f"{name} drives robots already, which do not match the data: {error}") from error
        print(f"{data.name}: goes on from {name}, statistics: {ranges.statistics or KEEP}")
    settings = processor.head.settings
    base.processor = processor.with_robots(
        [known[robot.name] for robot in processor.robots], settings, processor.state_encoding, processor.tiles
    )
    return base


def _spec(known: RobotSpec, data: RobotSpec, ranges: Ranges) -> RobotSpec:
    """The checkpoint's robot with its new ranges."""
    history = data.history or known.history
    known = replace(known, fewer_cameras=known.fewer_cameras or data.fewer_cameras, history=history, start=data.start)
    body = known.embodiment.union([data.embodiment], known.fewer_cameras)
    for field in ("horizon", "bins"):
        if (one := getattr(known, field)) != (other := getattr(data, field)):
            raise InputError(f"{field} is {one} in the checkpoint, {other} for the data")
    for field in ("images", "image_tokens"):
        one, other = getattr(known, field), getattr(data, field)
        if other not in (None, one):
            raise InputError(f"{field} is {one} in the checkpoint, not {other}: leave it out")
    # Points of the same objects in all cameras, of which the data may lack some.
    points = data.points * max(1, len(body.cameras)) // max(1, len(data.embodiment.cameras))
    if points > known.points:
        raise InputError(f"points are {known.points} a step in the checkpoint, {points} for the data")
    if ranges.predict is not None and data.relative != known.relative:
        raise InputError(f"it predicts {_relative(known)} relative to the state, but predict is {_relative(data)}")
    source = ranges.statistics or KEEP
    if source == KEEP:
        if ranges.normalization is not None:
            raise InputError("normalization= is for new ranges: set statistics=estimate or merge, or leave it out")
        return replace(known, embodiment=body)
    if data.relative != known.relative:
        predict = {
            name: "relative" if is_relative else "unchanged"
            for name, is_relative in zip(body.action, known.relative, strict=True)
        }
        raise InputError(f"statistics={source} needs the checkpoint's action targets: set predict={predict}")
    assert data.statistics is not None
    statistics = [data.statistics]
    if source == MERGE:
        if known.statistics is None:
            raise InputError("its version did not save statistics with the weights: keep or estimate them")
        statistics.insert(0, known.statistics)
    state, action = (Statistics.merged([one[kind] for one in statistics]) for kind in ("state", "action"))
    normalization = ranges.normalization or QUANTILE
    return replace(
        known,
        embodiment=body,
        state=Normalizer.fit(state, methods_of(body.state, normalization)),
        action=Normalizer.fit(action, methods_of(known.targets.names, normalization)),
        statistics_hash=hashlib.sha256(f"{state.hash()} {action.hash()}".encode()).hexdigest(),
        statistics={"state": state, "action": action},
    )


def _steps(history: Sequence[int]) -> str:
    return f"{', '.join(map(str, history))} steps" if history else "none"


def _relative(robot: RobotSpec) -> str:
    names = [name for name, is_relative in zip(robot.embodiment.action, robot.relative, strict=True) if is_relative]
    return ", ".join(names) or "nothing"
