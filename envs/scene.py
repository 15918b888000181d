"""A scene on the table, and its pictures.

The model is compiled once. A scene only rewrites numbers in it, so that thousands of scenes a minute are possible.
"""

from __future__ import annotations

import weakref

import mujoco
import numpy as np
from jaxtyping import Float, Int, UInt8

from vla.envs.arm import HAND_BODIES, TIP_SITE
from vla.envs.objects import COLORS, GOALS, SHAPES, SLOTS, GoalSpec, ObjectSpec, geom_size
from vla.envs.table import HIDDEN, SHOWN, build_spec

CAMERAS = ("front", "wrist")


class TableScene:
    """A compiled model with its data and its renderer. `close()` frees the renderer."""

    def __init__(self, image_size: int = 96, model: str = "light") -> None:
        self.image_size = image_size
        self.model = build_spec(image_size, model).compile()
        self.data = mujoco.MjData(self.model)
        self.objects: tuple[ObjectSpec, ...] = ()
        self.goals: tuple[GoalSpec, ...] = ()
        self.tip = self.model.site(TIP_SITE).id
        self.object_bodies: Int[np.ndarray, "k"] = np.array([self.model.body(f"object{i}").id for i in range(SLOTS)])
        self.slot_geoms = [{s: self.model.geom(f"object{i}_{s}").id for s in SHAPES} for i in range(SLOTS)]
        hand = [self.model.body(name).id for name in HAND_BODIES]
        self.hand_geoms: Int[np.ndarray, "g"] = np.flatnonzero(np.isin(self.model.geom_bodyid, hand))
        self._free = [int(self.model.body_jntadr[b]) for b in self.object_bodies]
        self._renderer: mujoco.Renderer | None = None
        self._free_renderer: weakref.finalize[..., TableScene] | None = None

    def reset(self) -> None:
        """The arm at joint zero, everything at rest, no object on the table."""
        mujoco.mj_resetData(self.model, self.data)
        self.place((), ())

    def place(self, objects: tuple[ObjectSpec, ...], goals: tuple[GoalSpec, ...]) -> None:
        """Puts exactly these objects (at most SLOTS) and goals (at most GOALS) on the table, at rest."""
        self.objects, self.goals = objects, goals
        for slot in range(SLOTS):
            self._fill_slot(slot, objects[slot] if slot < len(objects) else None)
        for index in range(GOALS):
            self._fill_goal(index, goals[index] if index < len(goals) else None)

    def _fill_slot(self, slot: int, spec: ObjectSpec | None) -> None:
        model, joint = self.model, self._free[slot]
        for shape, geom in self.slot_geoms[slot].items():
            active = spec is not None and spec.shape == shape
            model.geom_contype[geom], model.geom_conaffinity[geom] = (1, 3) if active else (0, 0)
            model.geom_group[geom] = SHOWN if active else HIDDEN
            if spec is not None and active:
                model.geom_rgba[geom, :3] = COLORS[spec.color]
                if spec.shape != "cone":
                    model.geom_size[geom] = geom_size(spec.shape, spec.half_extents)
        q, v = int(model.jnt_qposadr[joint]), int(model.jnt_dofadr[joint])
        # An unused body floats where it is parked instead of falling for ever.
        model.body_gravcomp[self.object_bodies[slot]] = 1.0 if spec is None else 0.0
        self.data.qvel[v : v + 6] = 0
        if spec is None:
            self.data.qpos[q : q + 7] = (5.0 + slot, 5.0, 0.0, 1, 0, 0, 0)
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

    def object_position(self, index: int) -> Float[np.ndarray, "3"]:
        """The centre of object `index` [m]."""
        return self.data.xpos[self.object_bodies[index]].copy()

    def object_geom(self, index: int) -> int:
        return self.slot_geoms[index][self.objects[index].shape]

    def render(self, camera: str) -> UInt8[np.ndarray, "h w 3"]:
        """A colour image. The data must be forwarded up to its kinematics, cameras and lights."""
        renderer = self._draw(camera)
        return renderer.render()

    def segment(self, camera: str) -> Int[np.ndarray, "h w"]:
        """The geom that each pixel shows, -1 where it shows none."""
        renderer = self._draw(camera)
        renderer.enable_segmentation_rendering()
        try:
            return renderer.render()[:, :, 0]
        finally:
            renderer.disable_segmentation_rendering()

    def _draw(self, camera: str) -> mujoco.Renderer:
        if self._renderer is None:
            self._renderer = mujoco.Renderer(self.model, self.image_size, self.image_size)
            for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
                self._renderer.scene.flags[flag] = 0
            # Also at exit: a renderer left to the interpreter's end fails there.
            self._free_renderer = weakref.finalize(self, self._renderer.close)
        self._renderer.update_scene(self.data, camera)
        return self._renderer

    def close(self) -> None:
        if self._free_renderer is not None:
            self._free_renderer()
        self._renderer = self._free_renderer = None
