"""Minimal kinematic models of a robot's tools, stored with data and checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from vla.errors import InputError

if TYPE_CHECKING:
    import mujoco

MOVING = {"mjJNT_HINGE": "hinge", "mjJNT_SLIDE": "slide"}
MAX_LISTED = 60
"""Maximum number of names in an error message."""


@dataclass(frozen=True)
class ArmJoint:
    """Conversion of an action component to a joint of the model.

    The joint is at `offset + scale * value` [rad, for a slide m] for a `value` of the action component `component`, or
    of the state component that measures it.
    """

    component: str
    joint: str
    scale: float = 1.0
    offset: float = 0.0


@dataclass(frozen=True)
class Tool:
    """A frame of the model (a site or a body), and the action components of its pose.

    Attributes:
        frame: Name of the frame.
        position: Components of x, y and z [m] in the world frame of the model.
        rotation: Components of the rotation.
    """

    frame: str
    position: tuple[str, ...]
    rotation: tuple[str, ...]


@dataclass(frozen=True)
class ToolKinematics:
    """The kinematics of a robot's tools."""

    model: str
    """The file or name of the original model."""
    mjcf: str
    """A model with only the joints between the world and the tools."""
    tools: tuple[Tool, ...]
    joints: tuple[ArmJoint, ...]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ToolKinematics:
        """The inverse of `dataclasses.asdict`, also for JSON values."""
        tools = (Tool(t["frame"], tuple(t["position"]), tuple(t["rotation"])) for t in values["tools"])
        joints = (ArmJoint(**joint) for joint in values["joints"])
        return cls(values["model"], values["mjcf"], tuple(tools), tuple(joints))


def extract_chain(model: mujoco.MjModel, frames: Sequence[str]) -> str:
    """Extracts the joints that move the given frames as MJCF, with each frame as a site of the same name.

    Numbers have full precision, so that poses equal those of `model`.

    Args:
        model: The complete model.
        frames: Names of sites or bodies.

    Raises:
        InputError: A frame does not exist or is not moved by a joint, or a joint of the chain is not a hinge or a slide
            or has no name.
    """
    ends = {frame: _frame(model, frame) for frame in frames}
    retained = {0}
    for frame, (body, _, _) in ends.items():
        ancestors = list(_ancestors(model, body))
        if not any(model.body_jntnum[ancestor] for ancestor in ancestors):
            raise InputError(f"no joint moves {frame}: name the tool of the arm")
        retained.update(ancestors)
    root = ElementTree.Element("mujoco", model="kinematics")
    ElementTree.SubElement(root, "compiler", angle="radian")
    elements = {0: ElementTree.SubElement(root, "worldbody")}
    for body in sorted(retained - {0}):
        element = ElementTree.SubElement(elements[int(model.body_parentid[body])], "body")
        element.attrib |= {"pos": _numbers(model.body_pos[body]), "quat": _numbers(model.body_quat[body])}
        # Masses have no effect, but MuJoCo requires them for moving bodies.
        ElementTree.SubElement(element, "inertial", pos="0 0 0", mass="1", diaginertia="1 1 1")
        first = int(model.body_jntadr[body])
        for joint in range(first, first + int(model.body_jntnum[body])):
            _add_joint(model, joint, element)
        elements[body] = element
    for frame, (body, pos, quat) in ends.items():
        ElementTree.SubElement(elements[body], "site", name=frame, pos=_numbers(pos), quat=_numbers(quat))
    return ElementTree.tostring(root, encoding="unicode")


def chain_joints(mjcf: str) -> tuple[str, ...]:
    """The joint names of an extracted chain, starting at the world."""
    return tuple(joint.attrib["name"] for joint in ElementTree.fromstring(mjcf).iter("joint"))


def _frame(model: mujoco.MjModel, name: str) -> tuple[int, Any, Any]:
    """The body of a frame, and the position and quaternion (w, x, y, z) of the frame in that body."""
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
    more = f" and {len(known) - MAX_LISTED} more" if len(known) > MAX_LISTED else ""
    return (", ".join(known[:MAX_LISTED]) or "(none)") + more
