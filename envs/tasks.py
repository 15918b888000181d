"""The tasks: how a scene is laid out, and when an object has met the task. Nothing here knows which object is named."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from vla.envs.arm import HAND_BODIES
from vla.envs.ik import azimuth, radius
from vla.envs.objects import BOWL_RADIUS, COLORS, SHAPES, ZONE_SIZE, GoalSpec, ObjectSpec
from vla.envs.scene import TableScene
from vla.errors import InputError

LIFT_HEIGHT = 0.05
"""[m]. A picked object is lifted by this much."""
MIN_SPACING = 0.075
"""[m] between the centres of two objects: room for an open jaw."""
REACH = (0.115, 0.305)
"""[m] from the shoulder's axis, where the fingers can stand steeply."""
YAW_SPREAD = 0.4
"""[rad] by which objects are turned away from the line to the shoulder."""

Layout = tuple[tuple[ObjectSpec, ...], tuple[GoalSpec, ...]]


class Task(NamedTuple):
    """`layout(rng)` draws a scene; `done(scene, i, goal)` says whether object i has met the task at that goal.

    `verb` is what has been done to an object that meets it.
    """

    name: str
    layout: Callable[[np.random.Generator], Layout]
    done: Callable[[TableScene, int, GoalSpec | None], bool]


def get_task(name: str) -> Task:
    """The task of that name. Raises InputError for an unknown one."""
    if name not in TASKS:
        raise InputError(f"unknown task {name!r}; known: {', '.join(TASKS)}")
    return TASKS[name]


def scatter(
    rng: np.random.Generator, count: int, x: tuple[float, float], y: tuple[float, float], spacing: float = MIN_SPACING
) -> list[tuple[float, float]]:
    """`count` points [m] in the rectangle, within reach and at least `spacing` apart."""
    points: list[tuple[float, float]] = []
    tries = 0
    while len(points) < count:
        tries += 1
        if tries > 200:  # a crowded corner: start again
            points, tries = [], 0
        point = np.array([rng.uniform(*x), rng.uniform(*y)])
        if REACH[0] <= radius(point) <= REACH[1] and all(np.hypot(*(point - p)) >= spacing for p in points):
            points.append((float(point[0]), float(point[1])))
    return points


def distinct_objects(rng: np.random.Generator, points: list[tuple[float, float]]) -> tuple[ObjectSpec, ...]:
    """One object at each point, all of different colour and of different shape."""
    colors = rng.permutation(list(COLORS))
    shapes = rng.permutation(SHAPES)
    return tuple(
        ObjectSpec(str(color), str(shape), x, y, azimuth(np.array([x, y])) + rng.uniform(-YAW_SPREAD, YAW_SPREAD))
        for (x, y), color, shape in zip(points, colors, shapes, strict=False)
    )


def _pick_layout(rng: np.random.Generator) -> Layout:
    return distinct_objects(rng, scatter(rng, int(rng.integers(3, 6)), (0.16, 0.31), (-0.145, 0.145))), ()


def _place_layout(rng: np.random.Generator) -> Layout:
    objects = distinct_objects(rng, scatter(rng, 3, (0.165, 0.30), (-0.064, 0.064)))
    return objects, _goals(rng, "bowl", x=(0.19, 0.25), y=(0.170, 0.182))


def _push_layout(rng: np.random.Generator) -> Layout:
    # Each object has a lane of its own, so that a straight push does not meet another object.
    lanes = rng.permutation([0.18, 0.235, 0.29]) + rng.uniform(-0.005, 0.005, 3)
    objects = distinct_objects(rng, [(float(x), float(rng.uniform(-0.05, 0.05))) for x in lanes])
    return objects, _goals(rng, "zone", x=(0.232, 0.238), y=(0.176, 0.186))


def _goals(rng: np.random.Generator, kind: str, x: tuple[float, float], y: tuple[float, float]) -> tuple[GoalSpec, ...]:
    colors = rng.permutation(list(COLORS))[:2]
    return tuple(
        GoalSpec(kind, str(color), side, float(rng.uniform(*x)), sign * float(rng.uniform(*y)))
        for color, (side, sign) in zip(colors, (("left", 1), ("right", -1)), strict=True)
    )


def _lifted(scene: TableScene, index: int, goal: GoalSpec | None) -> bool:
    return bool(scene.object_position(index)[2] - scene.objects[index].half_extents[2] >= LIFT_HEIGHT)


def _in_bowl(scene: TableScene, index: int, goal: GoalSpec | None) -> bool:
    assert goal is not None
    x, y, z = scene.object_position(index)
    inside = np.hypot(x - goal.x, y - goal.y) < BOWL_RADIUS * 0.9 and z < 0.05
    return bool(inside) and not held(scene, index)


def _in_zone(scene: TableScene, index: int, goal: GoalSpec | None) -> bool:
    assert goal is not None
    x, y, z = scene.object_position(index)
    inside = abs(x - goal.x) < ZONE_SIZE[0] and abs(y - goal.y) < ZONE_SIZE[1]
    return bool(inside and z < 0.04)


def hand_contacts(scene: TableScene, index: int) -> frozenset[str]:
    """The bodies of the hand (the fixed finger's, the moving jaw's) that touch object `index`."""
    data, model = scene.data, scene.model
    pairs = data.contact.geom[: data.ncon]
    touching = pairs[(pairs == scene.object_geom(index)).any(axis=1)].flatten()
    bodies = set(model.geom_bodyid[touching].tolist())
    return frozenset(name for name in HAND_BODIES if model.body(name).id in bodies)


def held(scene: TableScene, index: int) -> bool:
    """Whether any part of the hand touches object `index`."""
    return bool(hand_contacts(scene, index))


TASKS = {
    "pick": Task("pick", _pick_layout, _lifted),
    "place": Task("place", _place_layout, _in_bowl),
    "push": Task("push", _push_layout, _in_zone),
}
