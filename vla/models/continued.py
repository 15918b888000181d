"""Continues the training of a policy: with its weights, head and ranges on more data, with further robots, a new head.

| the data or the options have   | the policy                                                                   |
|--------------------------------|------------------------------------------------------------------------------|
| a robot of the checkpoint      | keeps its ranges, or has those of the data or of both (`Ranges`)             |
| another robot                  | has it in addition, with its own ranges; the chunks of others do not change  |
| another kind of head           | has a new head, for the robots of the data                                   |
| another horizon                | has it for all robots, if the head's weights do not depend on it             |
| another rate of a robot        | has that rate                                                                |
| other cameras of a robot       | has the cameras of both, and acts without some of them                       |
| points of more objects         | predicts them too                                                            |
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vla.common.renamed_keys import VALUES
from vla.common.statistics import Statistics
from vla.errors import InputError
from vla.models.action_heads.build import changed_options
from vla.models.action_heads.fast import to_json
from vla.models.action_tokenizers.fast import FastTokenizer
from vla.models.choices import KEEP, MERGE, check_statistics
from vla.models.growth import grown
from vla.models.normalization import QUANTILE, Normalizer, methods_of
from vla.models.robot_choice import is_like
from vla.models.robot_spec import RobotSpec
from vla.models.vla import VLA

TRAINING = {"rtc_training"}
"""Options of heads that their weights do not depend on."""

CompleteHead = Callable[[Mapping[str, Any], Sequence[RobotSpec]], Mapping[str, Any]]
"""Computes what the settings of an action head lack for these robots."""


@dataclass(frozen=True)
class Ranges:
    """Options for the normalisation ranges of a policy whose training continues.

    Attributes:
        statistics: "keep" (the default) for the checkpoint's ranges, with which its weights were trained; "new" for
            those of the new data; "merge" for those of both together.
        predict, normalization: as in `robot_specs`; None where not set.
    """

    statistics: str | None = None
    predict: str | Mapping[str, str] | None = None
    normalization: str | Mapping[str, str] | None = None

    def __post_init__(self) -> None:
        current = VALUES["train", "statistics"].get(str(self.statistics), self.statistics)
        object.__setattr__(self, "statistics", current)
        check_statistics(self.statistics)

    def check_unused(self, backbone: str) -> None:
        """Raises InputError if `statistics` is set, for a backbone that is not a policy of these robots."""
        if self.statistics is not None:
            raise InputError(f"statistics={self.statistics}: {backbone} is not a policy of this robot to continue")


def continued(
    name: str,
    base: VLA,
    robots: Sequence[RobotSpec],
    head: Mapping[str, Any],
    ranges: Ranges,
    complete: CompleteHead | None = None,
) -> VLA:
    """The model `base` of the checkpoint `name`, prepared for data of `robots`.

    Robots that it does not control yet join it. Another kind of head replaces its own, with new weights and for the
    robots of the data only. What changes is printed, and the source of each robot's ranges.

    Args:
        name: The checkpoint.
        base: Its model, which is changed.
        robots: The robots of the data.
        head: Settings of the action head; those of the checkpoint are kept if its kind is the same, except `TRAINING`.
        ranges: Options for the normalisation ranges.
        complete: Completes the settings of a new head for its robots; None: they are complete.

    Raises:
        InputError: where the data and the checkpoint do not match; the message names the difference.
    """
    processor = base.processor
    assert processor.head is not None
    kind, known = processor.head.settings["kind"], {robot.name: robot for robot in processor.robots}
    if not processor.has_points:  # the vocabulary has no point tokens
        robots = [replace(robot, points=0) for robot in robots]
    if not known.keys() & {robot.name for robot in robots}:
        ranges.check_unused(name)
    specs = {}
    for data in robots:
        if data.name not in known:
            print(f"{data.name}: joins {', '.join(known)} of {name}, with its own normalisation")
            for one in processor.robots:
                if is_like(one.embodiment, data.embodiment):
                    advice = f"`vla data rename STORE embodiment={one.name}` makes them one robot"
                    print(f"{data.name} and {one.name} have the same components, but other names: {advice}")
            specs[data.name] = replace(data, bins=processor.robots[0].bins)
            continue
        try:
            specs[data.name] = _spec(known[data.name], data, ranges)
        except InputError as error:
            raise InputError(f"{name} drives robots already, which do not match the data: {error}") from error
        print(f"{data.name}: goes on from {name}, statistics: {ranges.statistics or KEEP}")
    if kind != head["kind"]:
        return _with_new_head(name, base, list(specs.values()), head, complete)
    settings = _head_settings(name, processor.head.settings, head)
    specs, horizon = known | specs, robots[0].horizon
    if horizon != (before := processor.robots[0].horizon):
        if getattr(processor.head, "fixed_horizon", True):
            raise InputError(
                f"horizon is {before} in {name}, {horizon} for the data, and the weights of its head {kind} depend on "
                "it: leave horizon out, or choose another head"
            )
        print(f"{', '.join(specs)}: chunks of {_steps([horizon])} in place of {before}")
    return grown(base, _padded([replace(robot, horizon=horizon) for robot in specs.values()], len(known)), settings)


def _head_settings(name: str, own: Mapping[str, Any], head: Mapping[str, Any]) -> dict[str, Any]:
    """The settings `own` of the checkpoint's head, with the options of `head` that its weights do not depend on.

    Raises:
        InputError: for another value of an option that the weights depend on.
    """
    changed = changed_options(head, {**(own.get("expert") or {}), **own})
    folder = changed.get("tokenizer")
    if isinstance(folder, str) and to_json(FastTokenizer.load(Path(folder))) == own.get("tokenizer"):
        del changed["tokenizer"]
    if fixed := sorted(changed.keys() - TRAINING):
        raise InputError(
            f"head.{fixed[0]}={changed[fixed[0]]}: the weights of {name} determine it: leave it out, or choose a head "
            f"of another kind than {own['kind']}"
        )
    if changed:
        print(
            f"the action head {own['kind']} of {name} goes on with {', '.join(f'{k}={v}' for k, v in changed.items())}"
        )
    return {**own, **changed}


def _padded(robots: Sequence[RobotSpec], count: int) -> list[RobotSpec]:
    """The robots, of which the first `count` are not padded to a wider one that joins them.

    Robots of the same action dimension have the same padding.
    """
    widest = max(robot.action_dim for robot in robots[:count])
    default = widest if max(robot.action_dim for robot in robots) > widest else None
    padded = [replace(robot, padded_dim=robot.padded_dim or default) for robot in robots[:count]]
    of_width = {robot.action_dim: robot.padded_dim for robot in padded}
    return padded + [replace(robot, padded_dim=of_width.get(robot.action_dim)) for robot in robots[count:]]


def _with_new_head(
    name: str, base: VLA, robots: Sequence[RobotSpec], head: Mapping[str, Any], complete: CompleteHead | None
) -> VLA:
    """A policy on the backbone of `base`, without the token embeddings of its head."""
    processor, backbone = base.processor, base.backbone
    assert processor.head is not None
    settings = complete(head, robots) if complete else head
    print(f"the action head {head['kind']}, new, replaces {processor.head.settings['kind']} of {name}")
    names = {robot.name for robot in robots}
    if dropped := [robot.name for robot in processor.robots if robot.name not in names]:
        print(f"{', '.join(dropped)}: not controlled by the new head, without data")
    backbone.add_token_embeddings(processor.text_vocab - backbone.vocab_size)
    robots = [replace(robot, padded_dim=None) for robot in robots]
    return VLA(backbone, processor.with_robots(robots, settings, processor.state_encoding, processor.tiles))


def _body(known: RobotSpec, data: RobotSpec) -> RobotSpec:
    """The checkpoint's robot with the cameras of both, and the rate of the data. Prints what differs."""
    body, other, name = known.embodiment, data.embodiment, known.name
    added = [camera for camera in other.cameras if camera not in body.cameras]
    missing = [camera for camera in body.cameras if camera not in other.cameras]
    fewer = known.fewer_cameras or data.fewer_cameras
    if added:
        print(f"{name}: {', '.join(added)} in addition to the cameras {', '.join(body.cameras)}; it acts without, too")
    if missing and not fewer:
        print(f"{name}: the data have no camera {', '.join(missing)}: it acts without, too")
    fewer = fewer or bool(added or missing)
    history = data.history or known.history
    if (rate := other.control_hz) != body.control_hz:
        seconds = known.horizon / body.control_hz, data.horizon / rate
        print(
            f"{name}: {rate:g} Hz as in the data in place of {body.control_hz:g} Hz; "
            f"a chunk is {seconds[1]:.3g} s in place of {seconds[0]:.3g} s"
        )
        if not data.history:
            history = tuple(max(1, round(steps * rate / body.control_hz)) for steps in history)
            if len(set(history)) < len(history):
                raise InputError(f"past frames of {name} are the same step at {rate:g} Hz: set plan.history")
    if history != known.history:
        print(f"{name}: a history of {_steps(history)} in place of {_steps(known.history)}")
    cameras = (*body.cameras, *added)
    objects, new_objects = (robot.points // max(1, len(robot.embodiment.cameras)) for robot in (known, data))
    if new_objects > objects:
        print(f"{name}: predicts where {new_objects} objects are, in place of {objects or 'none'}")
    body = replace(body, cameras=cameras, control_hz=rate).union([other], fewer)
    points = max(objects, new_objects) * len(cameras) if added or new_objects > objects else known.points
    return replace(known, embodiment=body, fewer_cameras=fewer, history=history, start=data.start, points=points)


def _spec(known: RobotSpec, data: RobotSpec, ranges: Ranges) -> RobotSpec:
    """The checkpoint's robot with what the data change, and its new ranges. The horizon is that of the checkpoint."""
    if known.bins != data.bins:
        raise InputError(f"bins are {known.bins} in the checkpoint, {data.bins} for the data")
    for field in ("images", "image_tokens"):
        one, other = getattr(known, field), getattr(data, field)
        if other not in (None, one):
            raise InputError(f"{field} is {one} in the checkpoint, not {other}: leave it out")
    known = _body(known, data)
    body = known.embodiment
    if ranges.predict is not None and data.relative != known.relative:
        raise InputError(f"it predicts {_relative(known)} relative to the state, but predict is {_relative(data)}")
    source = ranges.statistics or KEEP
    if source == KEEP:
        if ranges.normalization is not None:
            raise InputError("normalization= is for new ranges: set statistics=new or merge, or leave it out")
        return known
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
            raise InputError("its version did not save statistics with the weights: set statistics=keep or new")
        statistics.insert(0, known.statistics)
    state, action = (Statistics.merged([one[kind] for one in statistics]) for kind in ("state", "action"))
    normalization = ranges.normalization or QUANTILE
    return replace(
        known,
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
