"""The SO-101 arm as a MuJoCo specification: real kinematics, masses and servos, light geometry.

Frames, inertias, joint ranges and servo gains follow MuJoCo Menagerie's `robotstudio_so101` (Apache-2.0); the
shapes are boxes fitted to its meshes, so that a small software-rendered image costs about a millisecond.
`model="menagerie"` loads the meshes from the wheel `so101-nexus`, for realistic images.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vla.common.mujoco_gl import mujoco
from vla.errors import InputError

JOINTS = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
MODELS = ("light", "menagerie")
TIP_SITE = "gripperframe"
HAND_BODIES = ("gripper", "moving_jaw_so101_v1")
ARM_CONTYPE = 2
"""Arm geoms collide with the table and the objects, never with each other."""

Vec = tuple[float, ...]


class Link(NamedTuple):
    """A body, its inertia (Ixx Iyy Izz Ixy Ixz Iyz about `com`) [kg m^2], and the joint that moves it about its z."""

    name: str
    parent: str
    pos: Vec
    quat: Vec
    mass: float
    com: Vec
    inertia: Vec
    joint: str = ""
    range: Vec = ()


LINKS = (
    Link("base", "world", (0, 0, 0), (1, 0, 0, 0), 0.147, (0.0137179, -5.19711e-05, 0.0334843),
         (0.000114686, 0.000136117, 0.000130364, -4.59787e-07, 4.97151e-06, 9.75275e-08)),
    Link("shoulder", "base", (0.0388353, 0, 0.0624), (0, 0, -1, 0), 0.100006, (-0.0307604, -1.7e-05, -0.0252713),
         (8.3759e-05, 8.10403e-05, 2.39783e-05, 7.55525e-08, -1.16342e-06, 1.54663e-07),
         "shoulder_pan", (-1.91986, 1.91986)),
    Link("upper_arm", "shoulder", (-0.0303992, -0.0182778, -0.0542), (1, -1, -1, -1), 0.103,
         (-0.089847, -0.008382, 0.018409),
         (4.08002e-05, 0.000147318, 0.000142487, -1.97819e-05, -4.03016e-08, 8.97326e-09),
         "shoulder_lift", (-1.7453293, 1.7453293)),
    Link("lower_arm", "upper_arm", (-0.11257, -0.028, 0), (1, 0, 0, 1), 0.104, (-0.098070, 0.0032438, 0.018283),
         (2.87438e-05, 0.000159844, 0.00014529, 7.41152e-06, 1.26409e-06, -4.90188e-08),
         "elbow_flex", (-1.69, 1.69)),
    Link("wrist", "lower_arm", (-0.1349, 0.0052, 0), (1, 0, 0, -1), 0.079, (-0.000103312, -0.0386143, 0.0281156),
         (3.68263e-05, 2.5391e-05, 2.1e-05, 1.7893e-08, -5.28128e-08, 3.6412e-06),
         "wrist_flex", (-1.658063, 1.658063)),
    Link("gripper", "wrist", (0, -0.0611, 0.0181), (0.0172091, -0.0172091, 0.706897, 0.706897), 0.087,
         (0.000214, 0.000245, -0.025187),
         (2.75087e-05, 4.33657e-05, 3.45059e-05, -3.35241e-07, -5.7352e-06, -5.17847e-08),
         "wrist_roll", (-2.7438473, 2.7438473)),
    Link("camera_mount", "gripper", (0, 0, 0), (1, 0, 0, 0), 0.012, (-0.00093, 0.05016, -0.03544),
         (4.8e-06, 2.1e-06, 2.9e-06, 0, 0, 0)),
    Link("moving_jaw_so101_v1", "gripper", (0.0202, 0.0188, -0.0234), (1, 1, 0, 0), 0.012,
         (-0.001575, -0.0300244, 0.0192755),
         (6.61427e-06, 1.89032e-06, 5.28738e-06, -3.19807e-07, -5.90717e-09, -1.09945e-07),
         "gripper", (-0.174533, 1.7453292)),
)  # fmt: skip


class Box(NamedTuple):
    """A box between two corners [m] in its body's frame; `part` is printed, motor or finger."""

    low: Vec
    high: Vec
    part: str


SHAPES: dict[str, tuple[Box, ...]] = {
    "base": (
        Box((-0.0224, -0.0555, 0), (0.0646, 0.0555, 0.012), "printed"),
        Box((-0.0272, -0.0235, 0.012), (0.053, 0.0245, 0.063), "printed"),
        Box((0.004, -0.0128, 0.03), (0.055, 0.0128, 0.0665), "motor"),
    ),
    "shoulder": (
        Box((-0.0476, -0.023, -0.038), (0.0122, 0.023, -0.010), "printed"),
        Box((-0.0428, -0.0198, -0.0644), (-0.018, 0.0198, -0.038), "motor"),
    ),
    "upper_arm": (
        Box((-0.1185, -0.011, -0.009), (0.012, 0.011, 0.046), "printed"),
        Box((-0.125, -0.0382, -0.0015), (-0.1002, -0.009, 0.0381), "motor"),
    ),
    "lower_arm": (
        Box((-0.105, -0.0115, -0.009), (0.012, 0.0115, 0.046), "printed"),
        Box((-0.1451, -0.0072, -0.0015), (-0.103, 0.0176, 0.0381), "motor"),
    ),
    "wrist": (
        Box((-0.016, -0.030, -0.006), (0.0145, 0.011, 0.047), "printed"),
        Box((-0.0124, -0.0626, 0.0079), (0.0124, -0.028, 0.0533), "motor"),
    ),
    "gripper": (
        Box((-0.034, -0.018, -0.037), (-0.010, 0.018, -0.001), "printed"),
        Box((-0.015, -0.0193, -0.0358), (0.0304, 0.0203, -0.005), "motor"),
        Box((-0.034, -0.014, -0.068), (-0.0150, 0.014, -0.034), "printed"),
        Box((-0.022, -0.010, -0.1045), (-0.0095, 0.010, -0.064), "finger"),
    ),
    "moving_jaw_so101_v1": (
        Box((-0.010, -0.024, 0.003), (0.010, 0.010, 0.035), "printed"),
        Box((-0.0085, -0.062, 0.0085), (0.0078, -0.022, 0.0295), "printed"),
        Box((-0.0122, -0.0815, 0.009), (-0.001, -0.056, 0.029), "finger"),
    ),
}  # fmt: skip
COLLIDING = ("lower_arm", "wrist", "gripper", "moving_jaw_so101_v1")
COLORS = {"printed": (0.93, 0.93, 0.90, 1), "motor": (0.13, 0.13, 0.15, 1), "finger": (0.36, 0.38, 0.42, 1)}

SERVO_KP, SERVO_KV = 998.22, 2.731
SERVO_TORQUE = 2.94
SERVO_SPEED, SERVO_ACCELERATION = 4.7, 60.0
"""Limits of an STS3215 without load at 12 V [rad/s], [rad/s^2]."""
GRIPPER_TORQUE = 0.735
"""Torque limit of the gripper [N m]: LeRobot sets Overload_Torque to 25 % under sustained load."""


def arm_spec(model: str = "light") -> mujoco.MjSpec:
    """The specification of the arm at the world's origin: x forward, y left, z up, the table at z = 0.

    Raises:
        InputError: the model is unknown, or "menagerie" is selected and its wheel is not installed.
    """
    if model == "light":
        spec = _light_spec()
    elif model == "menagerie":
        spec = _menagerie_spec()
    else:
        raise InputError(f"unknown arm model {model!r}; known: {', '.join(MODELS)}")
    spec.actuator("gripper").forcerange = (-GRIPPER_TORQUE, GRIPPER_TORQUE)
    return spec


def menagerie_path() -> Path | None:
    """The file of Menagerie's SO-101 in the wheel `so101-nexus`; None if it is not installed."""
    found = find_spec("so101_nexus")
    if found is None or not found.submodule_search_locations:
        return None
    path = Path(found.submodule_search_locations[0]) / "assets" / "SO101_menagerie" / "so101.xml"
    return path if path.exists() else None


def _light_spec() -> mujoco.MjSpec:
    spec = mujoco.MjSpec()
    spec.compiler.degree = False
    for part, color in COLORS.items():
        spec.add_material(name=part, rgba=color, specular=0.2, shininess=0.3)
    for link in LINKS:
        body = _add_link(spec, link)
        for box in SHAPES.get(link.name, ()):
            _add_box(body, box, collides=link.name in COLLIDING)
    spec.body("gripper").add_site(name=TIP_SITE, pos=(0.012, -0.000218, -0.098127), quat=(0, 0, 1, 0), group=3)
    return spec


def _add_link(spec: mujoco.MjSpec, link: Link) -> mujoco.MjsBody:
    parent = spec.worldbody if link.parent == "world" else spec.body(link.parent)
    body = parent.add_body(name=link.name, pos=link.pos, quat=np.asarray(link.quat) / np.linalg.norm(link.quat))
    body.mass, body.ipos, body.fullinertia, body.explicitinertial = link.mass, link.com, link.inertia, True
    if link.joint:
        body.add_joint(
            name=link.joint, axis=(0, 0, 1), range=link.range, damping=[0.60, 0, 0], frictionloss=0.052, armature=0.028
        )
        actuator = spec.add_actuator(
            name=link.joint, target=link.joint, ctrlrange=link.range, forcerange=(-SERVO_TORQUE, SERVO_TORQUE)
        )
        actuator.trntype = mujoco.mjtTrn.mjTRN_JOINT
        actuator.set_to_position(kp=SERVO_KP, kv=SERVO_KV)
    return body


def _add_box(body: mujoco.MjsBody, box: Box, *, collides: bool) -> None:
    low, high = np.asarray(box.low), np.asarray(box.high)
    geom = body.add_geom(
        type=mujoco.mjtGeom.mjGEOM_BOX, pos=(low + high) / 2, size=(high - low) / 2, material=box.part, mass=0
    )
    geom.contype, geom.conaffinity = (ARM_CONTYPE if collides else 0), 0
    if collides:
        # Rubber-like fingertips resist sliding, twisting and rolling.
        geom.condim, geom.priority, geom.friction = 6, 1, (1.5, 0.02, 0.002)
        geom.solref, geom.solimp = (0.01, 1), (0.95, 0.99, 0.001, 0.5, 2)


def _menagerie_spec() -> mujoco.MjSpec:
    path = menagerie_path()
    if path is None:
        raise InputError("model=menagerie needs the SO-101 meshes: install the package so101-nexus, or use model=light")
    spec = mujoco.MjSpec.from_file(str(path))
    for geom in spec.geoms:
        if geom.contype:
            geom.contype, geom.conaffinity, geom.friction = ARM_CONTYPE, 0, (1.5, 0.02, 0.002)
    for material in spec.materials:
        part = "motor" if material.name.startswith("sts3215") else "printed"
        material.rgba = COLORS[part]
    return spec
