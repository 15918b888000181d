"""Random scenes for visual questions: random objects and a random arm pose."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8

from vla.common.mujoco_gl import mujoco
from vla.common.scene_objects import Scene
from vla.envs.arm import ARM_CONTYPE, arm_spec
from vla.envs.ik import ArmIK, azimuth
from vla.envs.objects import COLORS, SHAPES, SLOTS, Furniture, ObjectSpec
from vla.envs.randomize import DomainRandomizer, jitter_sizes
from vla.envs.scene import CAMERAS, TableScene
from vla.envs.tasks.task import scatter
from vla.envs.truth import table_truth

AWAY = 9.0
"""A position outside all images [m]."""


class SceneSample(NamedTuple):
    """The images of a scene by camera, and its ground truth."""

    images: dict[str, UInt8[np.ndarray, "h w 3"]]
    scene: Scene


class SceneSampler:
    """Samples scenes by seed, with the appearance of the tasks and without physics. Call `close()` when done."""

    def __init__(self, image_size: int = 96, randomize: bool = True, model: str = "light", slots: int = SLOTS) -> None:
        self._scene = TableScene(image_size, model, Furniture(slots=slots))
        self._ik = ArmIK(arm_spec(model).compile())
        self._randomizer = DomainRandomizer(self._scene)
        self._randomize = randomize

    def sample(self, seed: int) -> SceneSample:
        """The scene of a seed, bit-identical: 1 to 6 objects, which may share colours, shapes or both."""
        rng = np.random.default_rng([seed, 7])
        return self.show(random_objects(rng), rng)

    def show(
        self, objects: tuple[ObjectSpec, ...], rng: np.random.Generator, without: int | None = None
    ) -> SceneSample:
        """A scene with these objects and otherwise random appearance.

        Args:
            objects: The objects, at most as many as there are slots.
            rng: The random generator.
            without: The index of an object to move out of sight; the scene is otherwise unchanged.
        """
        scene = self._scene
        scene.reset()
        scene.place(jitter_sizes(objects, rng) if self._randomize else objects, ())
        self._randomizer.apply(rng if self._randomize else None)
        self._pose_arm(rng)
        if without is not None:
            joint = scene.model.body_jntadr[scene.object_bodies[without]]
            address = int(scene.model.jnt_qposadr[joint])
            scene.data.qpos[address : address + 2] = AWAY
            mujoco.mj_kinematics(scene.model, scene.data)
        # The steps of mj_forward that rendering needs; _pose_arm has computed the kinematics.
        mujoco.mj_comPos(scene.model, scene.data)
        mujoco.mj_camlight(scene.model, scene.data)
        images = {camera: scene.render(camera) for camera in CAMERAS}
        return SceneSample(images, table_truth(scene))

    def _pose_arm(self, rng: np.random.Generator) -> None:
        """Samples a pose as in an episode, with the fingers above the table and clear of the objects."""
        scene = self._scene
        while True:
            position = np.array([rng.uniform(0.14, 0.31), rng.uniform(-0.15, 0.15), rng.uniform(0.015, 0.16)])
            yaw = azimuth(position) - np.pi / 2 + rng.uniform(-0.4, 0.4)
            arm, _ = self._ik.solve(position, rng.uniform(0.9, 1.3), yaw)
            scene.data.qpos[:5], scene.data.qpos[5] = arm, rng.uniform(-0.1, 0.9)
            mujoco.mj_kinematics(scene.model, scene.data)
            mujoco.mj_collision(scene.model, scene.data)
            touching = scene.data.contact.geom[: scene.data.ncon]
            if not (scene.model.geom_contype[touching] == ARM_CONTYPE).any():
                return

    def masks(self, camera: str) -> Bool[np.ndarray, "n h w"]:
        """The segmentation mask of each object of the last scene."""
        labels = self._scene.segment(camera)
        geoms = [self._scene.object_geom(index) for index in range(len(self._scene.objects))]
        return labels == np.array(geoms, dtype=int).reshape(-1, 1, 1)

    def close(self) -> None:
        """Frees the renderer."""
        self._scene.close()


def random_objects(rng: np.random.Generator) -> tuple[ObjectSpec, ...]:
    """1 to 6 random objects, separated and within reach."""
    count = int(rng.integers(1, SLOTS + 1))
    points = scatter(rng, count, (0.15, 0.32), (-0.15, 0.15), spacing=0.055)
    if count <= len(SHAPES) and rng.random() < 0.6:
        # All distinct, as in the tasks.
        appearances = list(zip(rng.permutation(list(COLORS))[:count], rng.permutation(SHAPES)[:count], strict=True))
    else:
        # A small palette produces duplicates, for counting questions.
        colors = rng.permutation(list(COLORS))[: rng.integers(1, len(COLORS) + 1)]
        shapes = rng.permutation(SHAPES)[: rng.integers(1, len(SHAPES) + 1)]
        appearances = [(rng.choice(colors), rng.choice(shapes)) for _ in points]
    return tuple(
        ObjectSpec(str(color), str(shape), x, y, float(rng.uniform(-np.pi, np.pi)))
        for (color, shape), (x, y) in zip(appearances, points, strict=True)
    )
