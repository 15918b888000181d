"""Lift the named bar with two arms."""

from __future__ import annotations

from typing import override

import numpy as np
from jaxtyping import Float

from vla.envs.objects import COLORS, SIZES, Furniture, Layout, ObjectSpec
from vla.envs.primitives import CLOSED, LIFT_TO, OPEN, Command, close_on, contacts, grasp_at, jaws_around, tip_of
from vla.envs.scene import Arm, TableScene
from vla.envs.tasks.task import Span, Task, shifted

LIFTED, GRIP_AT, BELOW = 0.05, 0.092, 0.005
"""Lift height of both ends; distance of the grasps from the bar's centre; and their depth below its centre [m]."""

SHUT = 0.30
"""The largest gripper angle of jaws closed on a bar [rad]."""


class BimanualLift(Task):
    """Both ends of the bar are lifted, and both hands hold it."""

    name = "bimanual-lift"
    furniture = Furniture(shapes=("bar",), goals=0, arms=2)
    vocabulary = {"bar": tuple(f"{color} bar" for color in COLORS)}
    templates = {
        "train": (
            "lift the {bar} with both arms",
            "pick up the {bar} with both hands",
            "raise the {bar} with both arms",
            "lift the {bar} together",
        ),
        "heldout": ("use both arms to lift the {bar}", "hold the {bar} at both ends and lift it"),
    }

    @override
    def layout(self, rng: np.random.Generator) -> Layout:
        colors = rng.permutation(list(COLORS))
        spots = [(x + rng.uniform(-0.006, 0.006), rng.uniform(-0.015, 0.015)) for x in (0.18, 0.265)]
        placed = zip(colors, spots, strict=False)
        return Layout(tuple(ObjectSpec(str(c), "bar", x, y, rng.uniform(-0.08, 0.08)) for c, (x, y) in placed))

    @override
    def move_outside(self, layout: Layout, named: tuple[int, ...], rng: np.random.Generator) -> Layout:
        return shifted(layout, 0.0, 0.035 * rng.choice([-1, 1]))

    @override
    def occupied(self, layout: Layout) -> list[Span]:
        return [(o.x, o.y + dy) for o in layout.objects for dy in np.linspace(-0.12, 0.12, 5).tolist()]

    @override
    def words(self, scene: TableScene, target: int, goal: int) -> dict[str, tuple[str, ...]]:
        return {"bar": (scene.objects[target].name,)}

    @override
    def points(self, scene: TableScene, target: int, goal: int) -> list[Float[np.ndarray, "3"]]:
        return [self._end(scene, target, side)[0] for side in (1, -1)]

    def _end(self, scene: TableScene, target: int, side: int) -> tuple[Float[np.ndarray, "3"], float]:
        """The grasp position of a side (1 left, -1 right) [m], and the yaw across the bar [rad]."""
        along = scene.data.xmat[scene.object_bodies[target]].reshape(3, 3)[:, 1]
        position = scene.object_position(target) + side * GRIP_AT * along
        return np.array([*position[:2], max(position[2] - BELOW, 0.012)]), float(np.arctan2(-along[0], along[1]))

    def _holds(self, scene: TableScene, target: int, arm: Arm) -> bool:
        # A jaw may lose contact for a moment.
        touches = contacts(scene, scene.object_geom(target), arm) > 0
        return touches and bool(scene.data.qpos[arm.joints][5] < SHUT)

    @override
    def done(self, scene: TableScene, target: int, goal: int) -> bool:
        ends = [self._end(scene, target, side)[0][2] for side in (1, -1)]
        return bool(min(ends) + BELOW - SIZES["bar"][2] > LIFTED) and all(
            self._holds(scene, target, arm) for arm in scene.arms
        )

    @override
    def plan(self, scene: TableScene, target: int, goal: int) -> tuple[Command, ...]:
        arms, tips = scene.arms, [tip_of(scene, arm) for arm in scene.arms]
        hands = [(arm, *self._end(scene, target, side)) for arm, side in zip(arms, (1, -1), strict=True)]
        holds = [self._holds(scene, target, arm) for arm in arms]
        # Both hands rise with the lower one; a hand that holds the bar alone does not move, to avoid dragging it.
        height = min(min(tip[2] for tip in tips) + 0.04, LIFT_TO) if all(holds) else SIZES["bar"][2] - BELOW
        low = bool(scene.object_position(target)[2] < 2 * SIZES["bar"][2])
        wait = low and not all(jaws_around(scene, *hand) or held for hand, held in zip(hands, holds, strict=True))
        commands = []
        for (arm, position, yaw), tip, held in zip(hands, tips, holds, strict=True):
            xy = (grasp_at(scene, arm, position, yaw) if all(holds) else tip)[:2]
            command = Command(np.array([*xy, height]), yaw, OPEN if wait else CLOSED)
            commands.append(command if held else close_on(scene, arm, position, yaw, wait=wait))
        return tuple(commands)
