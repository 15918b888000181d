"""Which components of an embodiment are which joints of a model, and in what unit."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from vla.common.kinematic_chain import ArmJoint
from vla.embodiment import Embodiment
from vla.errors import InputError

UNITS = {"rad": 1.0, "deg": math.pi / 180, "°": math.pi / 180, "m": 1.0, "mm": 1e-3}
"""[rad or m] of one."""
NAME = re.compile(r"(?P<bare>.*?)(\.pos)?( ?\[(?P<unit>[^\]]*)\])?")
FIELDS = ("component", "scale", "offset")
Named = tuple[str, dict[str, float]]
"""A component of an embodiment, and the scale and the offset that are given of it."""


def match_joints(
    body: Embodiment, chain: Sequence[str], given: Mapping[str, Any] | None = None, units: str | None = None
) -> tuple[ArmJoint, ...]:
    """The action component of each joint of the chain, in its order.

    `given` names them, {joint: component} or {joint: {component: …, scale: …, offset: …}} where a unit is not enough
    (`ArmJoint`). Without it a component is the joint of its name, apart from its unit and LeRobot's `.pos`. `units` is
    the unit of components that name none.

    Raises InputError for a joint without a component, listing both sides, for a unit that is not known to be
    convertible, and for a component that is not an absolute target or that no state component measures.
    """
    if units is not None and units not in UNITS:
        raise InputError(f"units={units}: choose {', '.join(UNITS)}")
    if given is None:
        found: dict[str, Named] = {bare(name): (name, {}) for name in body.action}
        if len(found) < len(body.action):
            raise InputError("two components of the action have one name apart from their units: name joints={…}")
    else:
        found = read_components("joints", given)
    if lacking := [joint for joint in chain if joint not in found]:
        raise InputError(
            f"no action component is the joint {lacking[0]}: name it, joints={{JOINT: 'COMPONENT', …}}; "
            f"joints: {', '.join(chain)}; components: {', '.join(body.action)}"
        )
    if given is not None and (beyond := sorted(found.keys() - set(chain))):
        raise InputError(f"joints: {beyond[0]} does not move the tool; {', '.join(chain)} do")
    made = tuple(_arm_joint(body, joint, *found[joint], units) for joint in chain)
    if units is not None and all(unit_of(found[joint][0]) or "scale" in found[joint][1] for joint in chain):
        raise InputError(f"units={units}: every joint's component names its own unit or has a scale: leave it out")
    return made


def bare(component: str) -> str:
    """The name of a component without its unit and LeRobot's `.pos`."""
    match = NAME.fullmatch(component)
    return match["bare"] if match else component


def unit_of(component: str) -> str | None:
    """The unit that a component's name has in brackets."""
    match = NAME.fullmatch(component)
    return match["unit"] if match else None


def read_components(option: str, given: Mapping[str, Any]) -> dict[str, Named]:
    """The values of an option {NAME: component} or {NAME: {component: …, scale: …, offset: …}}.

    Raises InputError that names the option for anything else, and for a number that is none.
    """
    return {name: _read(option, name, value) for name, value in given.items()}


def _read(option: str, name: str, value: Any) -> Named:
    if isinstance(value, str):
        return value, {}
    if not isinstance(value, Mapping) or set(value) - set(FIELDS) or not isinstance(value.get("component"), str):
        raise InputError(f"{option}: {name} is a component's name, or a mapping of {', '.join(FIELDS)}, not {value}")
    numbers = {field: value[field] for field in FIELDS[1:] if field in value}
    for field, number in numbers.items():
        sound = isinstance(number, int | float) and not isinstance(number, bool) and math.isfinite(number)
        if not sound or (field == "scale" and number == 0):
            raise InputError(f"{option}: {field} of {name} must be a number, and a scale not 0: {number}")
    return value["component"], {field: float(number) for field, number in numbers.items()}


def _arm_joint(body: Embodiment, joint: str, component: str, numbers: dict[str, float], units: str | None) -> ArmJoint:
    if component not in body.action:
        raise InputError(f"joints: there is no action component {component}: there are {', '.join(body.action)}")
    at = body.action.index(component)
    if not body.is_position_action[at]:
        raise InputError(
            f"{component} is a {body.action_mode[at]}: the tool pose is that of absolute joint targets "
            "(vla convert … actions=absolute, where that is what they are)"
        )
    if body.measured_by[at] is None:
        raise InputError(f"no state component measures {component}: the tool's own pose cannot be computed")
    scale = numbers.get("scale")
    if scale is None:
        unit = unit_of(component) or units
        if unit is None:
            raise InputError(
                f"{component} names no unit: units=rad or units=deg; what is normalised (LeRobot's -100 … 100) takes "
                f"joints={{{joint}: {{component: '{component}', scale: RADIANS_OF_ONE, offset: RADIANS_AT_0}}, …}}"
            )
        if unit not in UNITS:
            raise InputError(f"{component}: {unit} is none of {', '.join(UNITS)}: name a scale in joints={{…}}")
        scale = UNITS[unit]
    return ArmJoint(component, joint, scale, numbers.get("offset", 0.0))
