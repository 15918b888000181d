"""Domain randomization of light, colours, table, cameras and object sizes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from jaxtyping import Float

from vla.common.mujoco_gl import mujoco
from vla.envs.objects import ObjectSpec
from vla.envs.scene import TableScene
from vla.envs.table import TABLE_TEXTURES

TABLE_TONES = (
    (0.80, 0.72, 0.62),  # pale wood
    (0.62, 0.60, 0.58),  # grey
    (0.80, 0.79, 0.77),  # white
    (0.45, 0.42, 0.40),  # dark
    (0.62, 0.68, 0.72),  # slate
)
"""Muted tones, distinct from the objects' colours."""


class DomainRandomizer:
    """Randomizes the appearance of a scene, each time starting from the nominal model."""

    def __init__(self, scene: TableScene) -> None:
        self._scene = scene
        model = scene.model
        self._light = model.light_diffuse.copy(), model.light_dir.copy()
        self._ambient, self._headlight = model.vis.headlight.ambient.copy(), model.vis.headlight.diffuse.copy()
        self._camera = model.cam_pos.copy(), model.cam_quat.copy(), model.cam_fovy.copy()
        self._materials = model.mat_rgba.copy()
        self._table = model.geom("table").id
        names = [model.material(i).name for i in range(model.nmat)]
        self._printed = [i for i, name in enumerate(names) if name.endswith("printed")]

    def apply(self, rng: np.random.Generator | None) -> None:
        """Samples an appearance, or sets the nominal one if `rng` is None. Call after `TableScene.place`."""
        model = self._scene.model
        model.light_diffuse[:], model.light_dir[:] = self._light
        model.vis.headlight.ambient[:], model.vis.headlight.diffuse[:] = self._ambient, self._headlight
        model.cam_pos[:], model.cam_quat[:], model.cam_fovy[:] = self._camera
        model.mat_rgba[:] = self._materials
        self._set_table("wood", np.array(TABLE_TONES[0]))
        if rng is None:
            return
        self._randomize_light(rng)
        self._randomize_colors(rng)
        self._randomize_cameras(rng)

    def relight(self, rng: np.random.Generator) -> None:
        """Sets light outside the range of `apply`: about half or 1.5 times as strong, tinted, and oblique."""
        model = self._scene.model
        strength = rng.choice([rng.uniform(0.35, 0.55), rng.uniform(1.55, 1.8)]) * rng.uniform(0.85, 1.15, 3)
        model.light_diffuse[:], model.light_dir[:] = self._light[0] * strength, self._light[1]
        model.light_dir[:, :2] += rng.uniform(0.5, 0.9, 2) * rng.choice([-1, 1], 2)
        model.vis.headlight.ambient[:] = self._ambient * strength
        model.vis.headlight.diffuse[:] = self._headlight * strength

    def move_cameras(self, rng: np.random.Generator) -> None:
        """Sets camera poses outside the range of `apply`, translated and rotated along every axis."""
        model, (pos, quat, _) = self._scene.model, self._camera
        for name in self._scene.cameras:
            shift, turn = (0.03, 0.04) if name == "front" else (0.005, 0.04)
            camera = model.camera(name).id
            model.cam_pos[camera] = pos[camera] + rng.uniform(0.6, 1.0, 3) * rng.choice([-1, 1], 3) * shift
            angles = rng.uniform(0.6, 1.0, 3) * rng.choice([-1, 1], 3) * turn
            model.cam_quat[camera] = quat[camera]
            mujoco.mju_quatIntegrate(model.cam_quat[camera], angles, 1.0)

    def _set_table(self, texture: str, tone: Float[np.ndarray, "3"]) -> None:
        material = self._scene.model.material(f"table_{texture}").id
        self._scene.model.geom_matid[self._table] = material
        self._scene.model.mat_rgba[material, :3] = tone

    def _randomize_light(self, rng: np.random.Generator) -> None:
        model = self._scene.model
        model.light_diffuse[:] *= rng.uniform(0.75, 1.15) * rng.uniform(0.95, 1.05, 3)
        model.light_dir[:] += rng.uniform(-0.35, 0.35, 3) * (1, 1, 0)
        model.vis.headlight.ambient[:] *= rng.uniform(0.8, 1.2)
        model.vis.headlight.diffuse[:] *= rng.uniform(0.7, 1.3)

    def _randomize_colors(self, rng: np.random.Generator) -> None:
        model = self._scene.model
        texture = str(rng.choice(TABLE_TEXTURES))
        tone = np.array(TABLE_TONES[rng.integers(len(TABLE_TONES))])
        self._set_table(texture, np.clip(tone * rng.uniform(0.9, 1.1) + rng.uniform(-0.03, 0.03, 3), 0, 1))
        model.mat_rgba[self._printed, :3] *= rng.uniform(0.85, 1.0)
        scene = self._scene
        for index in range(len(scene.objects)):
            geom = scene.object_geom(index)
            color = model.geom_rgba[geom, :3] * rng.uniform(0.88, 1.1) + rng.uniform(-0.03, 0.03, 3)
            model.geom_rgba[geom, :3] = np.clip(color, 0, 1)

    def _randomize_cameras(self, rng: np.random.Generator) -> None:
        model = self._scene.model
        for name in self._scene.cameras:
            shift, turn = (0.012, 0.02) if name == "front" else (0.002, 0.015)
            camera = model.camera(name).id
            model.cam_pos[camera] += rng.uniform(-shift, shift, 3)
            angles = rng.uniform(-turn, turn, 3)
            mujoco.mju_quatIntegrate(model.cam_quat[camera], angles, 1.0)
            model.cam_fovy[camera] *= rng.uniform(0.97, 1.03)


def jitter_sizes(objects: tuple[ObjectSpec, ...], rng: np.random.Generator) -> tuple[ObjectSpec, ...]:
    """Scales each object randomly by a few percent."""
    return tuple(replace(o, scale=float(rng.uniform(0.93, 1.08))) for o in objects)
