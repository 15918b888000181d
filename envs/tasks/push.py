"""Push the named object into the named zone."""

from __future__ import annotations

from dataclasses import replace
from typing import override

import numpy as np
from jaxtyping import Float

from vla.envs.objects import COLORS, ZONE_SIZE, Layout
from vla.envs.primitives import CLOSED, HOLD_RADIUS, ROUND, Command, direction, funnel, radial_yaw, tip_of, to_fingers
from vla.envs.scene import TableScene
from vla.envs.tasks.task import NOUNS, Task, distinct_objects, goal_names, goals

PUSH_HEIGHT, PUSH_AHEAD, PUSH_GAP = 0.017, 0.022, 0.030
FINGERS_LEFT, FINGERS_RIGHT = 0.013, 0.036
"""The distance from the centre of the closed fingertips to their left and right outer sides [m]."""


class Push(Task):
    """Success: the object's centre is in the zone, on the table."""

    name = "push"
    vocabulary = {
        "object": NOUNS,
        "goal": (*(f"the {color} zone" for color in COLORS), "the left edge", "the right edge"),
    }
    templates = {
        "train": (
            "push the {object} to {goal}",
            "slide the {object} to {goal}",
            "shove the {object} over to {goal}",
            "move the {object} to {goal} by pushing it",
            "please push the {object} to {goal}",
        ),
        "heldout": (
            "could you slide the {object} over to {goal}",
            "push the {object} until it is at {goal}",
            "give the {object} a push to {goal}",
        ),
    }

    @override
    def layout(self, rng: np.random.Generator) -> Layout:
        # Each object has its own lane, so that a straight push does not hit another object.
        lanes = rng.permutation([0.18, 0.235, 0.29]) + rng.uniform(-0.005, 0.005, 3)
        objects = distinct_objects(rng, [(float(x), float(rng.uniform(-0.05, 0.05))) for x in lanes])
        return Layout(objects, goals(rng, "zone", x=(0.232, 0.238), y=(0.176, 0.186)))

    @override
    def move_outside(self, layout: Layout, named: tuple[int, ...], rng: np.random.Generator) -> Layout:
        objects = list(layout.objects)
        for index in named:
            objects[index] = replace(objects[index], y=float(rng.uniform(0.06, 0.085) * rng.choice([-1, 1])))
        return replace(layout, objects=tuple(objects))

    @override
    def words(self, scene: TableScene, target: int, goal: int) -> dict[str, tuple[str, ...]]:
        return {"object": (scene.objects[target].name,), "goal": goal_names(scene.goals[goal])}

    @override
    def done(self, scene: TableScene, target: int, goal: int) -> bool:
        zone, (x, y, z) = scene.goals[goal], scene.object_position(target)
        inside = abs(x - zone.x) < ZONE_SIZE[0] and abs(y - zone.y) < ZONE_SIZE[1]
        return bool(inside and z < 0.04)

    @override
    def plan(self, scene: TableScene, target: int, goal: int) -> Command:
        """Move behind the object with closed jaws, and push it along its lane."""
        zone, position = scene.goals[goal], scene.object_position(target)[:2]
        aim = np.array([np.clip(position[0], zone.x - 0.05, zone.x + 0.05), zone.y])
        ahead = aim - position
        distance = float(np.linalg.norm(ahead))
        ahead = ahead / max(distance, 1e-6)
        tip = tip_of(scene)
        # The closing direction is along the push, so that the flat side of a finger pushes.
        rightward = bool(ahead @ direction(radial_yaw(position)) > 0)
        closing = ahead if rightward else -ahead
        yaw = float(np.arctan2(closing[1], closing[0]))
        fingers = tip[:2] + to_fingers(closing)
        reach = _half_width(scene, target, ahead) + (FINGERS_RIGHT if rightward else FINGERS_LEFT)
        relative = fingers - position
        along, sideways = float(relative @ ahead), np.array([-ahead[1], ahead[0]])
        aside = float(relative @ sideways)
        behind = -(reach + PUSH_GAP) < along < -0.4 * reach
        if behind and abs(aside) < HOLD_RADIUS and tip[2] < PUSH_HEIGHT + 0.010:
            goto, height = fingers + ahead * min(PUSH_AHEAD, distance + 0.01) - sideways * aside, PUSH_HEIGHT
        else:
            goto = position - ahead * (reach + PUSH_GAP * 0.6)
            height = PUSH_HEIGHT + funnel(float(np.linalg.norm(goto - fingers)))
            if tip[2] < height - 0.03:  # rise before crossing the table
                goto = fingers
        return Command(np.array([*(goto - to_fingers(closing)), height]), yaw, CLOSED)


def _half_width(scene: TableScene, target: int, ahead: Float[np.ndarray, "2"]) -> float:
    """The distance from the object's centre to its surface in a horizontal direction [m]."""
    half, shape = scene.objects[target].half_extents, scene.objects[target].shape
    rotation = scene.data.xmat[scene.object_bodies[target]].reshape(3, 3)
    local = np.abs(rotation[:2].T @ ahead)
    if shape == "ball":
        return float(half[0])
    if shape in ROUND:
        return float(half[0] * np.hypot(local[0], local[1]) + half[2] * local[2])
    return float(half @ local)
