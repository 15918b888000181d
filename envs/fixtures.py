"""Articulated fixtures on the table: buttons and drawers."""

from __future__ import annotations

from vla.common.mujoco_gl import mujoco

BUTTON_HEIGHT, BUTTON_TRAVEL = 0.028, 0.008
"""Height of a button's cap, and its travel [m]."""
DRAWER_TRAVEL = 0.08
HANDLE_AHEAD, HANDLE_HEIGHT = 0.032, 0.028
"""Distance from a drawer's front to the centre of its handle (a post), and height of that centre [m]."""
_GREY, _WOOD = (0.35, 0.35, 0.37, 1), (0.72, 0.66, 0.58, 1)


def add_button(spec: mujoco.MjSpec, index: int) -> None:
    """A cap on a spring: joint `button<i>` is 0 when free, and -BUTTON_TRAVEL when pressed down."""
    base = spec.worldbody.add_body(name=f"button{index}", pos=(5, 4 + index, 0))
    foot = base.add_geom(type=mujoco.mjtGeom.mjGEOM_CYLINDER, pos=(0, 0, 0.008), size=(0.026, 0.008, 0), rgba=_GREY)
    cap = base.add_body(name=f"button{index}_cap")
    cap.mass, cap.inertia, cap.explicitinertial, cap.gravcomp = 0.01, (2e-6,) * 3, True, 1.0
    joint = cap.add_joint(
        name=f"button{index}", type=mujoco.mjtJoint.mjJNT_SLIDE, axis=(0, 0, 1), range=(-BUTTON_TRAVEL, 0.0)
    )
    # The spring force is 2.4 N when fully pressed.
    joint.stiffness, joint.damping, joint.armature = [300.0, 0, 0], [1.0, 0, 0], 0.005
    half = (BUTTON_HEIGHT - 0.014) / 2
    top = cap.add_geom(
        name=f"button{index}_part", type=mujoco.mjtGeom.mjGEOM_CYLINDER, pos=(0, 0, 0.014 + half), size=(0.019, half, 0)
    )
    for geom in (foot, top):
        geom.contype, geom.conaffinity, geom.condim, geom.friction = 1, 3, 4, (0.8, 0.01, 0.004)


def add_drawer(spec: mujoco.MjSpec, index: int) -> None:
    """A drawer in a case; joint `drawer<i>` is 0 when closed, and opens towards the robot."""
    case = spec.worldbody.add_body(name=f"drawer{index}", pos=(5, 4 + index, 0))
    for pos, size in (
        ((0.045, 0, 0.060), (0.045, 0.052, 0.003)),
        ((0.045, 0.050, 0.0315), (0.045, 0.002, 0.0315)),
        ((0.045, -0.050, 0.0315), (0.045, 0.002, 0.0315)),
        ((0.088, 0, 0.0315), (0.002, 0.052, 0.0315)),
    ):
        wall = case.add_geom(type=mujoco.mjtGeom.mjGEOM_BOX, pos=pos, size=size, rgba=_WOOD)
        wall.contype, wall.conaffinity = 1, 2
    tray = case.add_body(name=f"drawer{index}_tray")
    tray.mass, tray.inertia, tray.explicitinertial, tray.gravcomp = 0.10, (1e-4,) * 3, True, 1.0
    joint = tray.add_joint(
        name=f"drawer{index}", type=mujoco.mjtJoint.mjJNT_SLIDE, axis=(-1, 0, 0), range=(0.0, DRAWER_TRAVEL)
    )
    joint.damping, joint.frictionloss, joint.armature = [2.0, 0, 0], 0.4, 0.02
    geoms = (
        ("", (0.003, 0, 0.030), (0.003, 0.046, 0.026)),  # the front
        ("", (0.043, 0, 0.008), (0.038, 0.044, 0.003)),  # the floor
        ("", (-HANDLE_AHEAD / 2, 0, HANDLE_HEIGHT), (HANDLE_AHEAD / 2, 0.004, 0.004)),
        (f"drawer{index}_part", (-HANDLE_AHEAD, 0, HANDLE_HEIGHT), (0.007, 0.009, 0.020)),
    )
    for name, pos, size in geoms:
        geom = tray.add_geom(name=name, type=mujoco.mjtGeom.mjGEOM_BOX, pos=pos, size=size)
        geom.contype, geom.conaffinity, geom.condim, geom.friction = 1, 2, 6, (1.0, 0.01, 0.004)
