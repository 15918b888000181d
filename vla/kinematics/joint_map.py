"""Assigns the action components of an embodiment to the joints of a kinematic model, with their units."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from vla.common.kinematic_chain import ArmJoint
from vla.embodiment import Embodiment
from vla.errors import InputError

UNITS = {"rad": 1.0, "deg": math.pi / 180, "°": math.pi / 180, "m": 1.0, "mm": 1e-3}
"""The size of each unit [rad or m]."""
NAME = re.compile(r"(?P<bare>.*?)(\.pos)?( ?\[(?P<unit>[^\]]*)\])?")
FIELDS = ("component", "scale", "offset")
Named = tuple[str, dict[str, float]]
"""A component of an embodiment, with its scale and offset if they are set."""


def match_joints(
    body: Embodiment, chain: Sequence[str], mapping: Mapping[str, Any] | None = None, units: str | None = None
) -> tuple[ArmJoint, ...]:
    """The action component of each joint of the chain, in the order of the chain.

    Args:
        body: The embodiment.
        chain: Names of the joints.
        mapping: {joint: component}, or {joint: {component: …, scale: …, offset: …}} if the unit does not determine the
            conversion (`ArmJoint`); None: the component with the name of the joint, ignoring its unit and LeRobot's
            `.pos`.
        units: Unit of components whose name has none.

    Raises:
        InputError: A joint has no component, a unit is unknown, or a component is not an absolute target or is not
            measured.
    """
    if units is not None and units not in UNITS:
        raise InputError(f"units={units}: choose {', '.join(UNITS)}")
    if mapping is None:
        found: dict[str, Named] = {bare(name): (name, {}) for name in body.action}
        if len(found) < len(body.action):
            raise InputError("two components of the action have the same name without their units: set joints={…}")
    else:
        found = read_components("joints", mapping)
    if lacking := [joint for joint in chain if joint not in found]:
        raise InputError(
            f"no action component is the joint {lacking[0]}: name it, joints={{JOINT: 'COMPONENT', …}}; "
            f"joints: {', '.join(chain)}; components: {', '.join(body.action)}"
        )
    if mapping is not None and (unused := sorted(found.keys() - set(chain))):
        raise InputError(f"joints: {unused[0]} does not move the tool; {', '.join(chain)} do")
    joints = tuple(_arm_joint(body, joint, *found[joint], units) for joint in chain)
    if units is not None and all(unit_of(found[joint][0]) or "scale" in found[joint][1] for joint in chain):
        raise InputError(f"units={units}: every joint's component names its own unit or has a scale: leave it out")
    return joints


def bare(component: str) -> str:
    """The name of a component without its unit and LeRobot's `.pos`."""
    match = NAME.fullmatch(component)
    return match["bare"] if match else component


def unit_of(component: str) -> str | None:
    """The unit in brackets at the end of a component's name; None if there is none."""
    match = NAME.fullmatch(component)
    return match["unit"] if match else None


def read_components(option: str, values: Mapping[str, Any]) -> dict[str, Named]:
    """The values of an option {NAME: component} or {NAME: {component: …, scale: …, offset: …}}.

    Raises:
        InputError: A value has another form, or a scale or offset is not a valid number.
    """
    return {name: _read(option, name, value) for name, value in values.items()}


def _read(option: str, name: str, value: Any) -> Named:
    if isinstance(value, str):
        return value, {}
    if not isinstance(value, Mapping) or set(value) - set(FIELDS) or not isinstance(value.get("component"), str):
        raise InputError(f"{option}: {name} is a component's name, or a mapping of {', '.join(FIELDS)}, not {value}")
    numbers = {field: value[field] for field in FIELDS[1:] if field in value}
    for field, number in numbers.items():
        valid = isinstance(number, int | float) and not isinstance(number, bool) and math.isfinite(number)
        if not valid or (field == "scale" and number == 0):
            raise InputError(f"{option}: {field} of {name} must be a number, and a scale not 0: {number}")
    return value["component"], {field: float(number) for field, number in numbers.items()}


def _arm_joint(body: Embodiment, joint: str, component: str, numbers: dict[str, float], units: str | None) -> ArmJoint:
    if component not in body.action:
        raise InputError(f"joints: there is no action component {component}: there are {', '.join(body.action)}")
    index = body.action.index(component)
    if not body.is_position_action[index]:
        raise InputError(
            f"{component} has the action mode {body.action_mode[index]}: tool poses need absolute joint targets "
            "(vla convert … actions=absolute, if the values are absolute)"
        )
    if body.measured_by[index] is None:
        raise InputError(f"no state component measures {component}: the measured tool pose cannot be computed")
    scale = numbers.get("scale")
    if scale is None:
        unit = unit_of(component) or units
        if unit is None:
            raise InputError(
                f"{component} has no unit: set units=rad or units=deg; for normalised values (LeRobot's -100 … 100) "
                f"set joints={{{joint}: {{component: '{component}', scale: RADIANS_OF_ONE, offset: RADIANS_AT_0}}, …}}"
            )
        if unit not in UNITS:
            raise InputError(f"{component}: {unit} is none of {', '.join(UNITS)}: set a scale in joints={{…}}")
        scale = UNITS[unit]
    return ArmJoint(component, joint, scale, numbers.get("offset", 0.0))
