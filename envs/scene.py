"""A tabletop scene and its images.

The model is compiled once. Scenes only change its values, which allows thousands of scenes per minute.
"""

from __future__ import annotations

import weakref
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8

from vla.common.mujoco_gl import mujoco
from vla.common.rendering import make_renderer
from vla.envs.arm import HAND_BODIES, JOINTS, TIP_SITE
from vla.envs.objects import (
    COLORS,
    ODD_COLORS,
    ODD_SHAPES,
    ODD_SLOTS,
    FixtureSpec,
    Furniture,
    GoalSpec,
    ObjectSpec,
    geom_size,
)
from vla.envs.table import ARM_BASES, ARM_PREFIXES, HIDDEN, SHOWN, build_spec

CAMERAS = ("front", "wrist")
"""The cameras of a scene with one arm; with two arms, each has a wrist camera."""


class Arm(NamedTuple):
    """An arm of the scene, with its base at (0, `base_y`) [m]; `first` indexes its first joint and actuator."""

    prefix: str
    base_y: float
    first: int
    tip: int
    hand: tuple[int, ...]

    @property
    def joints(self) -> slice:
        """The arm's range in the positions of all joints."""
        return slice(self.first, self.first + len(JOINTS))


class TableScene:
    """A compiled model with its data and renderer. `close()` frees the renderer."""

    def __init__(self, image_size: int = 96, model: str = "light", furniture: Furniture | None = None) -> None:
        furniture = furniture or Furniture()
        self.image_size, self.furniture = image_size, furniture
        self.model = build_spec(image_size, model, furniture).compile()
        self.data = mujoco.MjData(self.model)
        self.objects: tuple[ObjectSpec, ...] = ()
        self.goals: tuple[GoalSpec, ...] = ()
        self.fixtures: tuple[FixtureSpec, ...] = ()
        self.distractors: tuple[ObjectSpec, ...] = ()
        self.arms = tuple(self._arm(i, furniture.arms) for i in range(furniture.arms))
        self.cameras = ("front", *(f"{arm.prefix}wrist" for arm in self.arms))
        self.tip = self.arms[0].tip
        slots = range(furniture.slots if furniture.shapes else 0)
        self.object_bodies: Int[np.ndarray, "k"] = np.array([self._body(f"object{i}") for i in slots], dtype=int)
        self.slot_geoms = [{s: self.model.geom(f"object{i}_{s}").id for s in furniture.shapes} for i in slots]
        self._odd = range(ODD_SLOTS if furniture.distractors else 0)
        hands = [body for arm in self.arms for body in arm.hand]
        self.hand_geoms: Int[np.ndarray, "g"] = np.flatnonzero(np.isin(self.model.geom_bodyid, hands))
        self._renderer: mujoco.Renderer | None = None
        self._free_renderer: weakref.finalize[..., TableScene] | None = None

    def _body(self, name: str) -> int:
        return int(self.model.body(name).id)

    def _arm(self, index: int, count: int) -> Arm:
        prefix = ARM_PREFIXES[count][index]
        hand = tuple(self._body(prefix + name) for name in HAND_BODIES)
        tip = int(self.model.site(prefix + TIP_SITE).id)
        return Arm(prefix, ARM_BASES[count][index], index * len(JOINTS), tip, hand)

    @property
    def joints(self) -> int:
        """The number of joints of all arms, which come first in the state, and of actuators."""
        return len(self.arms) * len(JOINTS)

    def reset(self) -> None:
        """Sets all joints to zero, at rest, with an empty table."""
        mujoco.mj_resetData(self.model, self.data)
        self.place((), ())

    def place(
        self,
        objects: tuple[ObjectSpec, ...],
        goals: tuple[GoalSpec, ...],
        fixtures: tuple[FixtureSpec, ...] = (),
        distractors: tuple[ObjectSpec, ...] = (),
    ) -> None:
        """Replaces the things on the table, at rest; the model limits the number of each kind."""
        self.objects, self.goals, self.fixtures, self.distractors = objects, goals, fixtures, distractors
        for slot, geoms in enumerate(self.slot_geoms):
            self._fill_slot(f"object{slot}", geoms, objects[slot] if slot < len(objects) else None)
        for slot in self._odd:
            geoms = {s: self.model.geom(f"odd{slot}_{s}").id for s in ODD_SHAPES}
            self._fill_slot(f"odd{slot}", geoms, distractors[slot] if slot < len(distractors) else None)
        for index in range(self.furniture.goals):
            self._fill_goal(index, goals[index] if index < len(goals) else None)
        for index, fixture in enumerate(fixtures):
            self.model.body_pos[self._body(f"{fixture.kind}{index}")] = (fixture.x, fixture.y, 0)
            self.data.qpos[self._slide(index)] = fixture.opening
            moving = self.model.geom_bodyid[self.fixture_geom(index)]
            first, count = self.model.body_geomadr[moving], self.model.body_geomnum[moving]
            self.model.geom_rgba[first : first + count, :3] = COLORS[fixture.color]

    def _fill_slot(self, name: str, geoms: dict[str, int], spec: ObjectSpec | None) -> None:
        model, body = self.model, self._body(name)
        joint = int(model.body_jntadr[body])
        for shape, geom in geoms.items():
            active = spec is not None and spec.shape == shape
            model.geom_contype[geom], model.geom_conaffinity[geom] = (1, 3) if active else (0, 0)
            model.geom_group[geom] = SHOWN if active else HIDDEN
            if spec is not None and active:
                model.geom_rgba[geom, :3] = (COLORS | ODD_COLORS)[spec.color]
                if spec.shape != "cone":
                    model.geom_size[geom] = geom_size(spec.shape, spec.half_extents)
        q, v = int(model.jnt_qposadr[joint]), int(model.jnt_dofadr[joint])
        # Gravity compensation keeps an unused body at its parking position.
        model.body_gravcomp[body] = 1.0 if spec is None else 0.0
        self.data.qvel[v : v + 6] = 0
        if spec is None:
            self.data.qpos[q : q + 7] = (5.0 + body, 5.0, 0.0, 1, 0, 0, 0)
        else:
            half = spec.yaw / 2
            self.data.qpos[q : q + 7] = (spec.x, spec.y, spec.half_extents[2], np.cos(half), 0, 0, np.sin(half))

    def _fill_goal(self, index: int, spec: GoalSpec | None) -> None:
        for kind in ("bowl", "zone"):
            body = self.model.body(f"{kind}{index}").id
            active = spec is not None and spec.kind == kind
            self.model.body_pos[body] = (spec.x, spec.y, 0) if spec is not None and active else (5, 4 + index, 0)
            if spec is not None and active:
                first, count = self.model.body_geomadr[body], self.model.body_geomnum[body]
                self.model.geom_rgba[first : first + count, :3] = COLORS[spec.color]

    def _slide(self, index: int) -> int:
        return int(self.model.jnt_qposadr[self.model.joint(f"{self.fixtures[index].kind}{index}").id])

    def fixture_geom(self, index: int) -> int:
        """The cap of button `index`, or the handle of drawer `index`."""
        return int(self.model.geom(f"{self.fixtures[index].kind}{index}_part").id)

    def fixture_position(self, index: int) -> Float[np.ndarray, "3"]:
        """The centre of the cap or the handle [m]."""
        return self.data.geom_xpos[self.fixture_geom(index)].copy()

    def fixture_travel(self, index: int) -> float:
        """The joint position: the opening of a drawer, or minus the depression of a button [m]."""
        return float(self.data.qpos[self._slide(index)])

    def object_position(self, index: int) -> Float[np.ndarray, "3"]:
        """The centre of object `index` [m]."""
        return self.data.xpos[self.object_bodies[index]].copy()

    def object_geom(self, index: int) -> int:
        """The index of the geom that shows object `index`."""
        return self.slot_geoms[index][self.objects[index].shape]

    def render(self, camera: str) -> UInt8[np.ndarray, "h w 3"]:
        """A colour image. Kinematics, cameras and lights of the data must be up to date."""
        renderer = self._draw(camera)
        return renderer.render()

    def segment(self, camera: str) -> Int[np.ndarray, "h w"]:
        """The geom index of each pixel; -1 for none."""
        renderer = self._draw(camera)
        renderer.enable_segmentation_rendering()
        try:
            return renderer.render()[:, :, 0]
        finally:
            renderer.disable_segmentation_rendering()

    def _draw(self, camera: str) -> mujoco.Renderer:
        if self._renderer is None:
            self._renderer = make_renderer(self.model, self.image_size, self.image_size)
            for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
                self._renderer.scene.flags[flag] = 0
            # Also at exit, because freeing a renderer during interpreter shutdown fails.
            self._free_renderer = weakref.finalize(self, self._renderer.close)
        self._renderer.update_scene(self.data, camera)
        return self._renderer

    def close(self) -> None:
        """Frees the renderer; it is created again when an image is rendered."""
        if self._free_renderer is not None:
            self._free_renderer()
        self._renderer = self._free_renderer = None
