"""Which joints move a robot's tools, and how: a model that is small enough to travel with data and checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from vla.errors import InputError

if TYPE_CHECKING:
    import mujoco

MOVING = {"mjJNT_HINGE": "hinge", "mjJNT_SLIDE": "slide"}
SHOWN = 60
"""Names that an error lists at most."""


@dataclass(frozen=True)
class ArmJoint:
    """A joint of the model is at `offset + scale * value` [rad, of a slide m] where the action component `component`,
    and what measures it, has `value`."""

    component: str
    joint: str
    scale: float = 1.0
    offset: float = 0.0


@dataclass(frozen=True)
class Tool:
    """A frame of the model (a site or a body) and the action components that are its pose.

    `position` are x, y and z [m] in the model's world, `rotation` the components of its rotation.
    """

    frame: str
    position: tuple[str, ...]
    rotation: tuple[str, ...]


@dataclass(frozen=True)
class ToolKinematics:
    """How a robot's joints place its tools. `mjcf` has nothing but the joints between the world and the tools."""

    model: str
    """The file or name that it was taken from."""
    mjcf: str
    tools: tuple[Tool, ...]
    joints: tuple[ArmJoint, ...]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ToolKinematics:
        """What `dataclasses.asdict` gave, also after JSON."""
        tools = (Tool(t["frame"], tuple(t["position"]), tuple(t["rotation"])) for t in values["tools"])
        joints = (ArmJoint(**joint) for joint in values["joints"])
        return cls(values["model"], values["mjcf"], tuple(tools), tuple(joints))


def extract_chain(model: mujoco.MjModel, frames: Sequence[str]) -> str:
    """MJCF of the joints that move `frames` (sites or bodies, by name), each frame a site of its name.

    Numbers are written in full, so that poses are those of `model`. Raises InputError for a frame that is not there,
    listing those that are, for one that no joint moves, and for a joint on the way that is not a hinge or a slide or
    has no name.
    """
    ends = {frame: _frame(model, frame) for frame in frames}
    kept = {0}
    for frame, (body, _, _) in ends.items():
        ancestors = list(_ancestors(model, body))
        if not any(model.body_jntnum[ancestor] for ancestor in ancestors):
            raise InputError(f"no joint moves {frame}: name the tool of the arm")
        kept.update(ancestors)
    root = ElementTree.Element("mujoco", model="kinematics")
    ElementTree.SubElement(root, "compiler", angle="radian")
    elements = {0: ElementTree.SubElement(root, "worldbody")}
    for body in sorted(kept - {0}):
        element = ElementTree.SubElement(elements[int(model.body_parentid[body])], "body")
        element.attrib |= {"pos": _numbers(model.body_pos[body]), "quat": _numbers(model.body_quat[body])}
        # Masses do not count here, but MuJoCo wants some for what moves.
        ElementTree.SubElement(element, "inertial", pos="0 0 0", mass="1", diaginertia="1 1 1")
        first = int(model.body_jntadr[body])
        for joint in range(first, first + int(model.body_jntnum[body])):
            _add_joint(model, joint, element)
        elements[body] = element
    for frame, (body, pos, quat) in ends.items():
        ElementTree.SubElement(elements[body], "site", name=frame, pos=_numbers(pos), quat=_numbers(quat))
    return ElementTree.tostring(root, encoding="unicode")


def chain_joints(mjcf: str) -> tuple[str, ...]:
    """The joints of what `extract_chain` gave, from the world on."""
    return tuple(joint.attrib["name"] for joint in ElementTree.fromstring(mjcf).iter("joint"))


def _frame(model: mujoco.MjModel, name: str) -> tuple[int, Any, Any]:
    """The body that a site or body of this name is fixed to, and its position and quaternion (w, x, y, z) there."""
    import mujoco

    site = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_SITE, name)
    if site >= 0:
        return int(model.site_bodyid[site]), model.site_pos[site], model.site_quat[site]
    body = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_BODY, name)
    if body < 0:
        sites = [model.site(i).name for i in range(model.nsite)]
        bodies = [model.body(i).name for i in range(1, model.nbody)]
        raise InputError(f"tool={name}: the model has the sites {_listed(sites)} and the bodies {_listed(bodies)}")
    return body, (0, 0, 0), (1, 0, 0, 0)


def _ancestors(model: mujoco.MjModel, body: int) -> Sequence[int]:
    found = []
    while body:
        found.append(body)
        body = int(model.body_parentid[body])
    return found


def _add_joint(model: mujoco.MjModel, joint: int, body: ElementTree.Element) -> None:
    import mujoco

    kind, name = mujoco.mjtJoint(model.jnt_type[joint]), model.joint(joint).name
    if kind.name not in MOVING:
        raise InputError(f"the joint {name!r} between the world and the tool is neither a hinge nor a slide")
    if not name:
        raise InputError("a joint between the world and the tool has no name: name it in the model")
    element = ElementTree.SubElement(body, "joint", name=name, type=MOVING[kind.name])
    element.attrib |= {"pos": _numbers(model.jnt_pos[joint]), "axis": _numbers(model.jnt_axis[joint])}
    element.attrib["ref"] = _numbers([model.qpos0[model.jnt_qposadr[joint]]])
    if model.jnt_limited[joint]:
        element.attrib |= {"limited": "true", "range": _numbers(model.jnt_range[joint])}


def _numbers(values: Any) -> str:
    return " ".join(repr(float(value)) for value in values)


def _listed(names: Sequence[str]) -> str:
    known = [name for name in names if name]
    more = f" and {len(known) - SHOWN} more" if len(known) > SHOWN else ""
    return (", ".join(known[:SHOWN]) or "(none)") + more
