"""Drives a robot of LeRobot, in degrees and percent, by a policy in other units.

| --policy.units | joint that is an angle                | gripper                        | other components |
|----------------|---------------------------------------|--------------------------------|------------------|
| degrees        | degrees                               | 0 to 100 percent of its range  | unchanged        |
| percent        | -100 to 100 percent of its range      | 0 to 100 percent of its range  | unchanged        |

A range is that of `--policy.ranges`, else of the SO-101's joint, else the limits in the checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from vla.embodiment import Embodiment
from vla.errors import InputError
from vla.kinematics.joint_map import UNITS, bare, unit_of
from vla.policies.converted_units import BatchConvertedPolicy, Conversion
from vla.policies.policy import Policy

ANGLES = ("rad", "deg", "°")
LARGEST = 4 * np.pi
"""Absolute value above which no joint position is in radians."""


@dataclass(frozen=True)
class _Component:
    """A component in LeRobot's unit: the value is `scale * ours + offset`; `text` describes the conversion."""

    name: str
    scale: float
    offset: float
    text: str


def in_lerobot_units(policy: Policy, units: str, ranges: Mapping[str, Sequence[float]]) -> BatchConvertedPolicy:
    """The policy with states and actions in LeRobot's `units`; prints the conversion in one line.

    Raises:
        InputError: the policy has no angles with a unit, or a range is unknown or invalid.
    """
    body = policy.embodiment
    if body.rotations:
        raise InputError(f"--policy.units={units}: {body.name} has tool poses, which LeRobot's robots do not take")
    if not any(unit_of(name) in ANGLES for name in body.action):
        raise InputError(
            f"--policy.units={units}: no action of {body.name} is an angle with a unit ({', '.join(body.action)}); "
            "a policy trained on LeRobot's values needs no conversion: leave it out"
        )
    limits = _ranges(body, ranges)
    measured = {at: i for i, at in enumerate(body.measured_by) if at is not None}
    action = [
        _convert(name, units, bool(gripper), limits.get(bare(name)))
        for name, gripper in zip(body.action, body.is_gripper, strict=True)
    ]
    state = [
        _convert(name, units, i in measured and bool(body.is_gripper[measured[i]]), limits.get(bare(name)))
        for i, name in enumerate(body.state)
    ]
    offsets = np.where(body.is_position_action, [one.offset for one in action], 0.0)
    to_action = Conversion(np.array([one.scale for one in action]), offsets)
    to_state = Conversion(np.array([one.scale for one in state]), np.array([one.offset for one in state]))
    print(f"--policy.units={units}: {'; '.join(dict.fromkeys(one.text for one in action))}", flush=True)
    names = {name: one.name for name, one in zip(body.action, action, strict=True)}
    low, high = (to_action.to_robot(np.array(end)) for end in (body.action_low, body.action_high))
    converted = replace(
        body,
        state=tuple(one.name for one in state),
        action=tuple(names.values()),
        action_low=tuple(low.tolist()),
        action_high=tuple(high.tolist()),
        action_state=tuple(None if at is None else state[at].name for at in body.measured_by),
        action_turn=tuple((np.array(body.action_turn) * to_action.scale).tolist()),
        grippers=tuple(names[name] for name in body.grippers),
    )
    return BatchConvertedPolicy(policy, converted, to_state, to_action)


def _ranges(body: Embodiment, chosen: Mapping[str, Sequence[float]]) -> dict[str, tuple[float, float]]:
    """The range of each component, by its name without the unit."""
    from vla.envs.arm import LINKS

    names = [bare(name) for name in body.action]
    ranges = dict(zip(names, zip(body.action_low, body.action_high, strict=True), strict=True))
    joints = {link.joint: link.range for link in LINKS if link.joint}
    if set(joints) == set(names) and all(unit_of(name) == "rad" for name in body.action):
        ranges = {joint: (low, high) for joint, (low, high) in joints.items()}
    if unknown := sorted(chosen.keys() - set(names)):
        raise InputError(f"--policy.ranges: there is no {unknown[0]}: there are {', '.join(names)}")
    if wrong := [name for name, ends in chosen.items() if len(ends) != 2]:
        raise InputError(f"--policy.ranges: {wrong[0]} needs a minimum and a maximum")
    return ranges | {name: (float(low), float(high)) for name, (low, high) in chosen.items()}


def _convert(name: str, units: str, is_gripper: bool, ends: tuple[float, float] | None) -> _Component:
    unit, short = unit_of(name), bare(name)
    if not is_gripper and unit not in ANGLES:
        return _Component(name, 1.0, 0.0, f"{name} unchanged")
    if not is_gripper and units == "degrees":
        return _Component(f"{short} [deg]", UNITS[str(unit)] / UNITS["deg"], 0.0, f"angles from {unit} to degrees")
    if ends is None or not ends[1] > ends[0]:
        raise InputError(f"--policy.units={units}: the range of {short} is unknown: set --policy.ranges")
    low, high = ends
    start = 0.0 if is_gripper else -100.0
    scale = (100.0 - start) / (high - low)
    text = f"{short} from {low:.4g} … {high:.4g}{f' {unit}' if unit else ''} to {start:g} … 100 %"
    return _Component(f"{short} [%]", scale, start - low * scale, text)


def check_radians(body: Embodiment, robot_type: str | None, state: np.ndarray | None = None) -> None:
    """Raises InputError where a policy in radians would drive a robot of LeRobot without a conversion.

    Args:
        body: The policy's embodiment.
        robot_type: LeRobot's type of the robot; None or empty if there is none.
        state: States that LeRobot measured, if known.
    """
    radians = [unit_of(name) == "rad" for name in body.state]
    if not any(radians):
        return
    advice = "--policy.units=degrees or percent converts them; dataset, if they are radians"
    if robot_type and robot_type != body.name:
        raise InputError(
            f"this policy uses radians for {body.name}, and LeRobot's {robot_type} uses other units: {advice}"
        )
    if state is not None and (outside := np.abs(state)[..., radians]).max(initial=0.0) > LARGEST:
        raise InputError(f"this policy uses radians, and LeRobot's state has {outside.max():.4g}: {advice}")
