"""Pick up the named object."""

from __future__ import annotations

from typing import override

import numpy as np

from vla.envs.objects import Layout
from vla.envs.primitives import Command, lift
from vla.envs.scene import TableScene
from vla.envs.tasks.task import NOUNS, Task, distinct_objects, scatter

LIFT_HEIGHT = 0.05
"""The lift height for success [m]."""


class Pick(Task):
    """Success: the object is lifted by LIFT_HEIGHT."""

    name = "pick"
    vocabulary = {"object": NOUNS}
    templates = {
        "train": (
            "pick up the {object}",
            "pick the {object} up",
            "lift the {object}",
            "grab the {object}",
            "take the {object}",
            "please pick up the {object}",
            "grasp the {object} and lift it",
            "raise the {object} off the table",
            "get the {object}",
            "fetch me the {object}",
            "can you lift the {object}",
            "i want the {object}, pick it up",
        ),
        "heldout": (
            "could you pick up the {object}",
            "lift up the {object} please",
            "go and grab the {object}",
            "take the {object} off the table",
        ),
    }
    outside = (((0.105, 0.15), (0.10, 0.15)), ((0.105, 0.15), (-0.15, -0.10)), ((0.313, 0.335), (-0.10, 0.10)))

    @override
    def layout(self, rng: np.random.Generator) -> Layout:
        return Layout(distinct_objects(rng, scatter(rng, int(rng.integers(3, 6)), (0.16, 0.31), (-0.145, 0.145))))

    @override
    def words(self, scene: TableScene, target: int, goal: int) -> dict[str, tuple[str, ...]]:
        return {"object": (scene.objects[target].name,)}

    @override
    def done(self, scene: TableScene, target: int, goal: int) -> bool:
        return bool(scene.object_position(target)[2] - scene.objects[target].half_extents[2] >= LIFT_HEIGHT)

    @override
    def plan(self, scene: TableScene, target: int, goal: int) -> Command:
        return lift(scene, target)
