"""Put the named object in the named bowl."""

from __future__ import annotations

from typing import override

import numpy as np

from vla.envs.objects import COLORS, Layout
from vla.envs.primitives import Command, drop_in, in_bowl
from vla.envs.scene import TableScene
from vla.envs.tasks.task import NOUNS, Task, distinct_objects, goal_names, goals, scatter

BOWLS = (*(f"the {color} bowl" for color in COLORS), "the left bowl", "the right bowl")


class Place(Task):
    """Success: the object is in the bowl and released."""

    name = "place"
    vocabulary = {"object": NOUNS, "goal": BOWLS}
    templates = {
        "train": (
            "put the {object} in {goal}",
            "place the {object} in {goal}",
            "drop the {object} into {goal}",
            "pick up the {object} and put it in {goal}",
            "move the {object} into {goal}",
            "please put the {object} in {goal}",
        ),
        "heldout": (
            "could you put the {object} into {goal}",
            "take the {object} and drop it in {goal}",
            "the {object} belongs in {goal}, please put it there",
        ),
    }
    outside = (((0.307, 0.335), (-0.08, 0.08)),)

    @override
    def layout(self, rng: np.random.Generator) -> Layout:
        objects = distinct_objects(rng, scatter(rng, 3, (0.165, 0.30), (-0.064, 0.064)))
        return Layout(objects, goals(rng, "bowl", x=(0.19, 0.25), y=(0.170, 0.182)))

    @override
    def words(self, scene: TableScene, target: int, goal: int) -> dict[str, tuple[str, ...]]:
        return {"object": (scene.objects[target].name,), "goal": goal_names(scene.goals[goal])}

    @override
    def done(self, scene: TableScene, target: int, goal: int) -> bool:
        return in_bowl(scene, target, scene.goals[goal])

    @override
    def plan(self, scene: TableScene, target: int, goal: int) -> Command:
        bowl = scene.goals[goal]
        return drop_in(scene, target, np.array([bowl.x, bowl.y]))
