"""The tabletop as a MuJoCo specification: arms, a table, a pool of objects, bowls, zones, fixtures, a lamp, cameras."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, UInt8

from vla.common.mujoco_gl import mujoco
from vla.envs.arm import arm_spec
from vla.envs.fixtures import add_button, add_drawer
from vla.envs.objects import (
    BOWL_HEIGHT,
    BOWL_RADIUS,
    MAX_SCALE,
    OBJECT_MASS,
    ODD_SHAPES,
    ODD_SLOTS,
    SIZES,
    ZONE_SIZE,
    Furniture,
    geom_size,
)

TABLE_TEXTURES = ("plain", "wood", "cloth", "speckle", "tiles")
SHOWN, HIDDEN = 0, 5  # MuJoCo draws the geom groups 0 to 2
_GEOM = {
    "cube": mujoco.mjtGeom.mjGEOM_BOX,
    "brick": mujoco.mjtGeom.mjGEOM_BOX,
    "ball": mujoco.mjtGeom.mjGEOM_SPHERE,
    "cylinder": mujoco.mjtGeom.mjGEOM_CYLINDER,
    "cone": mujoco.mjtGeom.mjGEOM_MESH,
    "bar": mujoco.mjtGeom.mjGEOM_BOX,
    "egg": mujoco.mjtGeom.mjGEOM_ELLIPSOID,
    "disc": mujoco.mjtGeom.mjGEOM_CYLINDER,
}
ARM_SPACING = 0.36
"""The distance between the bases of two arms, which face the same direction [m]."""
ARM_PREFIXES = {1: ("",), 2: ("left_", "right_")}
ARM_BASES = {1: (0.0,), 2: (ARM_SPACING / 2, -ARM_SPACING / 2)}
"""y of each arm's base [m]."""


def build_spec(image_size: int, model: str, furniture: Furniture) -> mujoco.MjSpec:
    """The specification of the arms, the table, the object pool, the goals, the fixtures, the light and the cameras."""
    spec = arm_spec(model) if furniture.arms == 1 else _two_arms(model)
    spec.modelname = "so101_tabletop"
    option = spec.option
    option.timestep, option.integrator, option.cone = 0.005, mujoco.mjtIntegrator.mjINT_IMPLICITFAST, 1
    option.impratio, option.iterations, option.ls_iterations = 10, 10, 20
    visual = spec.visual
    visual.quality.offsamples, visual.quality.shadowsize = 0, 0
    visual.global_.offwidth, visual.global_.offheight = max(640, image_size), max(640, image_size)
    visual.map.znear, visual.map.zfar = 0.01, 20
    spec.stat.extent, spec.stat.center = 1.0, (0.2, 0, 0.1)  # the clipping planes are multiples of the extent
    visual.headlight.ambient, visual.headlight.diffuse = (0.46, 0.46, 0.46), (0.25, 0.25, 0.25)
    visual.headlight.specular = (0, 0, 0)
    _add_surroundings(spec)
    _add_cameras(spec, ARM_PREFIXES[furniture.arms])
    if "cone" in furniture.shapes:
        cone = spec.add_mesh(name="cone")
        cone.uservert, cone.inertia = _cone_vertices().flatten(), mujoco.mjtMeshInertia.mjMESH_INERTIA_CONVEX
    for slot in range(furniture.slots if furniture.shapes else 0):
        _add_object(spec, f"object{slot}", furniture.shapes)
    for index in range(furniture.goals):
        _add_bowl(spec, index)
        _add_zone(spec, index)
    for index in range(furniture.fixtures):
        (add_button if furniture.fixture == "button" else add_drawer)(spec, index)
    for slot in range(ODD_SLOTS if furniture.distractors else 0):
        _add_object(spec, f"odd{slot}", ODD_SHAPES)
    return spec


def _two_arms(model: str) -> mujoco.MjSpec:
    """Two arms side by side with prefixed names, the left one first. They do not collide with each other."""
    both = mujoco.MjSpec()
    both.compiler.degree = False
    for prefix, y in zip(ARM_PREFIXES[2], ARM_BASES[2], strict=True):
        both.attach(arm_spec(model), prefix=prefix, frame=both.worldbody.add_frame(pos=(0, y, 0)))
    return both


def _add_surroundings(spec: mujoco.MjSpec) -> None:
    spec.add_texture(
        name="sky", type=mujoco.mjtTexture.mjTEXTURE_SKYBOX, builtin=mujoco.mjtBuiltin.mjBUILTIN_GRADIENT,
        rgb1=(0.62, 0.74, 0.86), rgb2=(0.90, 0.93, 0.95), width=32, height=192,
    )  # fmt: skip
    for name in TABLE_TEXTURES:
        texture = spec.add_texture(name=name, type=mujoco.mjtTexture.mjTEXTURE_2D, width=64, height=64, nchannel=3)
        texture.data = _table_texture(name).tobytes()
        material = spec.add_material(name=f"table_{name}", specular=0, shininess=0, texrepeat=(4, 4))
        material.textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = name
    table = spec.worldbody.add_geom(
        name="table", type=mujoco.mjtGeom.mjGEOM_BOX, pos=(0.22, 0, -0.02), size=(0.38, 0.46, 0.02)
    )
    table.material, table.contype, table.conaffinity = "table_plain", 1, 3
    # Contacts use the table's friction: fingers slide, and rolling friction (last entry, [m]) stops a ball.
    table.priority, table.condim, table.friction = 2, 6, (0.5, 0.01, 0.004)
    light = spec.worldbody.add_light(name="lamp", pos=(0.4, 0.3, 1.5), dir=(-0.25, -0.25, -1), castshadow=False)
    light.type, light.diffuse, light.specular = mujoco.mjtLightType.mjLIGHT_DIRECTIONAL, (0.46,) * 3, (0.15,) * 3


def _add_cameras(spec: mujoco.MjSpec, arms: tuple[str, ...]) -> None:
    """`front` faces the robot from the front and above; `wrist` is on each arm's camera mount, as in Menagerie."""
    eye, target = np.array([0.47, 0.0, 0.45]), np.array([0.20, 0.0, 0.03])
    back = (eye - target) / np.linalg.norm(eye - target)
    right = np.array([0.0, 1.0, 0.0])
    rotation = np.stack([right, np.cross(back, right), back], axis=1)
    quat = np.zeros(4)
    mujoco.mju_mat2Quat(quat, rotation.flatten())
    spec.worldbody.add_camera(name="front", pos=eye, quat=quat, fovy=40)
    for arm in arms:
        mount, turn = spec.body(f"{arm}camera_mount"), (np.cos(0.285), -np.sin(0.285), 0, 0)
        mount.add_camera(name=f"{arm}wrist", pos=(0.0, 0.055, -0.045), quat=turn, fovy=70)


def _add_object(spec: mujoco.MjSpec, name: str, shapes: tuple[str, ...]) -> None:
    body = spec.worldbody.add_body(name=name, pos=(5, 5, 0))
    body.add_freejoint(name=name)
    body.gravcomp = 1.0  # compiled for all slots, then set per slot
    # One mass and inertia for all shapes except the bar, so that they do not change with the shape.
    inertia = (1.2e-4, 6e-6, 1.2e-4) if shapes == ("bar",) else (6e-6,) * 3
    body.mass, body.inertia, body.explicitinertial = OBJECT_MASS, inertia, True
    body.ipos, body.iquat = (0, 0, 0), (1, 0, 0, 0)
    for shape in shapes:
        half = np.asarray(SIZES[shape]) * MAX_SCALE
        geom = body.add_geom(name=f"{name}_{shape}", type=_GEOM[shape], size=geom_size(shape, half))
        if shape == "cone":
            geom.meshname = "cone"
        geom.contype, geom.conaffinity, geom.group, geom.condim = 1, 3, HIDDEN, 6
        geom.friction = (0.8, 0.01, 0.004)
        geom.solref, geom.solimp = (0.01, 1), (0.95, 0.99, 0.001, 0.5, 2)


def _add_bowl(spec: mujoco.MjSpec, index: int) -> None:
    body = spec.worldbody.add_body(name=f"bowl{index}", pos=(5, 4 + index, 0))
    floor = body.add_geom(type=mujoco.mjtGeom.mjGEOM_CYLINDER, pos=(0, 0, 0.002), size=(BOWL_RADIUS * 0.85, 0.002, 0))
    walls = [floor]
    sides = 10
    for angle in np.arange(sides) * 2 * np.pi / sides:
        # Each wall leans outward by 25 degrees.
        tilt = np.array([np.cos(0.22), 0, np.sin(0.22), 0])
        turn = np.array([np.cos(angle / 2), 0, 0, np.sin(angle / 2)])
        quat = np.zeros(4)
        mujoco.mju_mulQuat(quat, turn, tilt)
        pos = (BOWL_RADIUS * 0.92 * np.cos(angle), BOWL_RADIUS * 0.92 * np.sin(angle), BOWL_HEIGHT / 2)
        size = (0.002, BOWL_RADIUS * np.tan(np.pi / sides), BOWL_HEIGHT / 2)
        walls.append(body.add_geom(type=mujoco.mjtGeom.mjGEOM_BOX, pos=pos, quat=quat, size=size))
    for geom in walls:
        geom.contype, geom.conaffinity, geom.friction = 1, 3, (0.8, 0.01, 0.004)


def _add_zone(spec: mujoco.MjSpec, index: int) -> None:
    body = spec.worldbody.add_body(name=f"zone{index}", pos=(5, 4 + index, 0))
    geom = body.add_geom(type=mujoco.mjtGeom.mjGEOM_BOX, pos=(0, 0, 0.0005), size=(*ZONE_SIZE, 0.0005))
    geom.contype, geom.conaffinity = 0, 0


def _cone_vertices(sides: int = 14) -> Float[np.ndarray, "n 3"]:
    radius, _, height = SIZES["cone"]
    angles = np.arange(sides) * 2 * np.pi / sides
    base = np.stack([radius * np.cos(angles), radius * np.sin(angles), np.full(sides, -height)], axis=1)
    top = np.stack([0.12 * radius * np.cos(angles), 0.12 * radius * np.sin(angles), np.full(sides, height)], axis=1)
    return np.concatenate([base, top])


def _table_texture(name: str) -> UInt8[np.ndarray, "64 64 3"]:
    """A deterministic grey pattern, tinted by the material's colour."""
    rng = np.random.default_rng(TABLE_TEXTURES.index(name))
    v, u = np.mgrid[0:64, 0:64] / 64
    value: Float[np.ndarray, "64 64"] = np.ones((64, 64))
    if name == "plain":
        pass
    elif name == "wood":
        rings = u * 6 + 0.25 * np.sin(2 * np.pi * v) + 0.1 * np.sin(2 * np.pi * (2 * v + u))
        value = 0.88 + 0.10 * np.sin(2 * np.pi * rings) + rng.normal(0, 0.015, (64, 64))
    elif name == "cloth":
        value = 0.92 + 0.06 * np.sin(2 * np.pi * 16 * u) * np.sin(2 * np.pi * 16 * v)
    elif name == "speckle":
        value = 0.95 + rng.normal(0, 0.05, (64, 64))
    else:
        value = np.where((np.floor(u * 2) + np.floor(v * 2)) % 2 == 0, 1.0, 0.88)
    return np.repeat((np.clip(value, 0, 1) * 255).astype(np.uint8)[:, :, None], 3, axis=2)
