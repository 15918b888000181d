"""What a task is: what it says, how it lays out a scene, when it is met, and how its expert goes about it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

import numpy as np
from jaxtyping import Float

from vla.envs.ik import azimuth, radius
from vla.envs.objects import COLORS, SHAPES, FixtureSpec, Furniture, GoalSpec, Layout, ObjectSpec
from vla.envs.primitives import Command
from vla.envs.scene import TableScene

MIN_SPACING = 0.075
"""[m] between the centres of two objects: room for an open jaw."""
REACH = (0.115, 0.305)
"""[m] from the shoulder's axis, where the fingers can stand steeply."""
YAW_SPREAD = 0.4
"""[rad] by which objects are turned away from the line to the shoulder."""
NOUNS = tuple(f"{color} {shape}" for color in COLORS for shape in SHAPES)
_PARTS = tuple(i / 8 for i in range(1, 9))

Span = tuple[float, float]
Rectangle = tuple[Span, Span]
"""(x, y) ranges [m]."""


class Task(ABC):
    """In each scene a task has `choices` x `goals` instructions: a target, and for some a goal, say which one is given.

    What a target counts is the task's affair (an object, a button, a permutation); `words` says it. Everything is
    read off the scene: a task has no memory.
    """

    name: ClassVar[str]
    templates: ClassVar[Mapping[str, tuple[str, ...]]]
    """The phrasings of training ("train") and others ("heldout"), with the fields that `words` fills."""
    vocabulary: ClassVar[Mapping[str, tuple[str, ...]]]
    """What can stand in each field."""
    furniture: ClassVar[Furniture] = Furniture()
    relates: ClassVar[bool] = False
    """Whether instructions name a relation between things."""
    outside: ClassVar[tuple[Rectangle, ...]] = ()
    """Where training never has a target, within reach: the axis "position"."""

    @abstractmethod
    def layout(self, rng: np.random.Generator) -> Layout:
        """Draws a scene; it does not depend on the instruction."""

    def choices(self, layout: Layout) -> tuple[int, int]:
        """How many targets, and how many goals for each of them, an instruction can name in this scene."""
        return len(layout.objects), max(len(layout.goals), 1)

    def named(self, layout: Layout, target: int, goal: int) -> tuple[int, ...]:
        """Which things (objects, then fixtures) the axes "object" and "position" change; all of one kind."""
        return (target,)

    @abstractmethod
    def words(self, scene: TableScene, target: int, goal: int) -> dict[str, tuple[str, ...]]:
        """For each field of the templates the ways to say it; the first field's first is `info["target"]`."""

    @abstractmethod
    def done(self, scene: TableScene, target: int, goal: int) -> bool:
        """Whether the scene, as the physics have it, is what this instruction asks for."""

    def wrong(self, scene: TableScene, target: int, goal: int) -> bool:
        """Whether it is what another instruction asks for."""
        targets, goals = self.choices(Layout(scene.objects, scene.goals, scene.fixtures))
        others = ((t, g) for t in range(targets) for g in range(goals) if (t, g) != (target, goal))
        return any(self.done(scene, t, g) for t, g in others)

    @abstractmethod
    def plan(self, scene: TableScene, target: int, goal: int) -> Command | tuple[Command, ...]:
        """What the expert does in this state: one command, or one for each arm."""

    def points(self, scene: TableScene, target: int, goal: int) -> list[Float[np.ndarray, "3"]]:
        """Places [m] of what is acted on now and of where it goes: two, but for a task that only picks up."""
        places = [scene.object_position(target)]
        if scene.goals:
            places.append(np.array([scene.goals[goal].x, scene.goals[goal].y, 0.0]))
        return places

    def busy(self, layout: Layout) -> list[Span]:
        """Places [m] to keep clear for what is acted on: here the objects and the straight ways to the goals."""
        things = [(o.x, o.y) for o in layout.objects] or [(f.x, f.y) for f in layout.fixtures]
        ways = (
            (x + (g.x - x) * part, y + (g.y - y) * part) for x, y in things for g in layout.goals for part in _PARTS
        )
        return [*things, *ways]

    def unfamiliar(self, layout: Layout) -> Layout:
        """The layout in a relation that training leaves out, where the task `relates`."""
        return layout

    def elsewhere(self, layout: Layout, named: tuple[int, ...], rng: np.random.Generator) -> Layout:
        """The layout with the named objects `outside`."""
        objects = list(layout.objects)
        for index in named:
            others = [(o.x, o.y) for i, o in enumerate(objects) if i != index]
            spec, spot = objects[index], _free_spot(rng, self.outside, others)
            turn = spec.yaw - azimuth(np.array([spec.x, spec.y]))
            objects[index] = replace(spec, x=spot[0], y=spot[1], yaw=azimuth(np.array(spot)) + turn)
        return replace(layout, objects=tuple(objects))


def shifted(layout: Layout, dx: float, dy: float) -> Layout:
    """The same scene, moved over the table by (dx, dy) [m]."""

    def move[T: (ObjectSpec, FixtureSpec, GoalSpec)](things: tuple[T, ...]) -> tuple[T, ...]:
        return tuple(replace(t, x=t.x + dx, y=t.y + dy) for t in things)

    return Layout(move(layout.objects), move(layout.goals), move(layout.fixtures))


def scatter(rng: np.random.Generator, count: int, x: Span, y: Span, spacing: float = MIN_SPACING) -> list[Span]:
    """`count` points [m] in the rectangle, within reach and at least `spacing` apart."""
    points: list[Span] = []
    tries = 0
    while len(points) < count:
        tries += 1
        if tries > 200:  # a crowded corner: start again
            points, tries = [], 0
        point = np.array([rng.uniform(*x), rng.uniform(*y)])
        if _fits(point, points, spacing):
            points.append((float(point[0]), float(point[1])))
    return points


def _free_spot(rng: np.random.Generator, rectangles: tuple[Rectangle, ...], others: list[Span]) -> Span:
    spacing = MIN_SPACING
    while True:
        x, y = rectangles[rng.integers(len(rectangles))]
        point = np.array([rng.uniform(*x), rng.uniform(*y)])
        if _fits(point, others, spacing):
            return float(point[0]), float(point[1])
        spacing *= 0.999  # where it is crowded, a little closer


def _fits(point: Float[np.ndarray, "2"], others: list[Span], spacing: float) -> bool:
    return REACH[0] <= radius(point) <= REACH[1] and all(np.hypot(*(point - p)) >= spacing for p in others)


def distinct_objects(
    rng: np.random.Generator, points: list[Span], shapes: tuple[str, ...] = SHAPES
) -> tuple[ObjectSpec, ...]:
    """One object at each point, all of different colour and, where there are as many, of different shape."""
    colors = rng.permutation(list(COLORS))
    order = rng.permutation(shapes)
    return tuple(
        turned(rng, str(color), str(order[i % len(order)]), x, y)
        for i, ((x, y), color) in enumerate(zip(points, colors, strict=False))
    )


def turned(rng: np.random.Generator, color: str, shape: str, x: float, y: float) -> ObjectSpec:
    """An object that faces the shoulder, more or less."""
    return ObjectSpec(color, shape, x, y, azimuth(np.array([x, y])) + rng.uniform(-YAW_SPREAD, YAW_SPREAD))


def goals(rng: np.random.Generator, kind: str, x: Span, y: Span) -> tuple[GoalSpec, ...]:
    """Two bowls or zones of different colour, one on either side."""
    colors = rng.permutation(list(COLORS))[:2]
    return tuple(
        GoalSpec(kind, str(color), side, float(rng.uniform(*x)), sign * float(rng.uniform(*y)))
        for color, (side, sign) in zip(colors, (("left", 1), ("right", -1)), strict=True)
    )


def goal_names(goal: GoalSpec) -> tuple[str, ...]:
    """The ways to name a goal, each of them unique in its scene."""
    return (f"the {goal.color} {goal.kind}", f"the {goal.side} {'bowl' if goal.kind == 'bowl' else 'edge'}")
