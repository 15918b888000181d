"""The interface of a task: instructions, scene layout, success criterion and expert."""

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
"""The minimum distance between the centres of two objects, which leaves room for an open jaw [m]."""
REACH = (0.115, 0.305)
"""The range of distances from the shoulder's axis in which the fingers can point steeply down [m]."""
YAW_SPREAD = 0.4
"""The maximum rotation of objects from the direction to the shoulder [rad]."""
NOUNS = tuple(f"{color} {shape}" for color in COLORS for shape in SHAPES)
_FRACTIONS = tuple(i / 8 for i in range(1, 9))

Span = tuple[float, float]
Rectangle = tuple[Span, Span]
"""(x, y) ranges [m]."""


class Task(ABC):
    """A task. An instruction is identified by a target and a goal (`choices`).

    The meaning of the target index depends on the task (an object, a button, a permutation). All methods depend only on
    the scene: a task has no state.
    """

    name: ClassVar[str]
    templates: ClassVar[Mapping[str, tuple[str, ...]]]
    """The phrasings of training ("train") and others ("heldout"), with the fields that `words` fills."""
    vocabulary: ClassVar[Mapping[str, tuple[str, ...]]]
    """The possible values of each field."""
    furniture: ClassVar[Furniture] = Furniture()
    relates: ClassVar[bool] = False
    """Whether instructions name a relation between things."""
    outside: ClassVar[tuple[Rectangle, ...]] = ()
    """Regions within reach without targets in training, for the axis "position"."""

    @abstractmethod
    def layout(self, rng: np.random.Generator) -> Layout:
        """Samples a scene, independent of the instruction."""

    def choices(self, layout: Layout) -> tuple[int, int]:
        """The number of targets, and of goals per target, in this scene."""
        return len(layout.objects), max(len(layout.goals), 1)

    def named(self, layout: Layout, target: int, goal: int) -> tuple[int, ...]:
        """The indices of the things (objects, then fixtures), of one kind, that "object" and "position" change."""
        return (target,)

    @abstractmethod
    def words(self, scene: TableScene, target: int, goal: int) -> dict[str, tuple[str, ...]]:
        """The variants of each field of the templates; the first variant of the first field is `info["target"]`."""

    @abstractmethod
    def done(self, scene: TableScene, target: int, goal: int) -> bool:
        """Whether the scene fulfils this instruction."""

    def wrong(self, scene: TableScene, target: int, goal: int) -> bool:
        """Whether the scene fulfils another instruction."""
        targets, goals = self.choices(Layout(scene.objects, scene.goals, scene.fixtures))
        others = ((t, g) for t in range(targets) for g in range(goals) if (t, g) != (target, goal))
        return any(self.done(scene, t, g) for t, g in others)

    @abstractmethod
    def plan(self, scene: TableScene, target: int, goal: int) -> Command | tuple[Command, ...]:
        """The expert's command in this state, or one command per arm."""

    def points(self, scene: TableScene, target: int, goal: int) -> list[Float[np.ndarray, "3"]]:
        """Positions of the present object and of its goal [m]; tasks that only pick have no goal."""
        positions = [scene.object_position(target)]
        if scene.goals:
            positions.append(np.array([scene.goals[goal].x, scene.goals[goal].y, 0.0]))
        return positions

    def occupied(self, layout: Layout) -> list[Span]:
        """Positions to keep clear of distractors [m]: the objects and the straight paths to the goals."""
        things = [(o.x, o.y) for o in layout.objects] or [(f.x, f.y) for f in layout.fixtures]
        paths = (
            (x + (g.x - x) * fraction, y + (g.y - y) * fraction)
            for x, y in things
            for g in layout.goals
            for fraction in _FRACTIONS
        )
        return [*things, *paths]

    def with_held_out_relation(self, layout: Layout) -> Layout:
        """The layout with a held-out relation, if the task `relates`."""
        return layout

    def move_outside(self, layout: Layout, named: tuple[int, ...], rng: np.random.Generator) -> Layout:
        """The layout with the named objects moved to `outside`."""
        objects = list(layout.objects)
        for index in named:
            others = [(o.x, o.y) for i, o in enumerate(objects) if i != index]
            spec, spot = objects[index], _free_spot(rng, self.outside, others)
            turn = spec.yaw - azimuth(np.array([spec.x, spec.y]))
            objects[index] = replace(spec, x=spot[0], y=spot[1], yaw=azimuth(np.array(spot)) + turn)
        return replace(layout, objects=tuple(objects))


class FixtureTask(Task):
    """A task with a button or a drawer; the field of its templates is named after the kind of the fixture."""

    def choices(self, layout: Layout) -> tuple[int, int]:
        """See `Task.choices`."""
        return len(layout.fixtures), 1

    def words(self, scene: TableScene, target: int, goal: int) -> dict[str, tuple[str, ...]]:
        """See `Task.words`."""
        fixture = scene.fixtures[target]
        return {fixture.kind: (fixture.name,)}


def shifted(layout: Layout, dx: float, dy: float) -> Layout:
    """The layout shifted by (dx, dy) [m]."""

    def move[T: (ObjectSpec, FixtureSpec, GoalSpec)](things: tuple[T, ...]) -> tuple[T, ...]:
        return tuple(replace(t, x=t.x + dx, y=t.y + dy) for t in things)

    return Layout(move(layout.objects), move(layout.goals), move(layout.fixtures))


def scatter(rng: np.random.Generator, count: int, x: Span, y: Span, spacing: float = MIN_SPACING) -> list[Span]:
    """`count` points [m] in the rectangle, within reach and at least `spacing` apart."""
    points: list[Span] = []
    attempts = 0
    while len(points) < count:
        attempts += 1
        if attempts > 200:  # crowded: restart
            points, attempts = [], 0
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
        spacing *= 0.999  # relaxed while there is no free position


def _fits(point: Float[np.ndarray, "2"], others: list[Span], spacing: float) -> bool:
    return REACH[0] <= radius(point) <= REACH[1] and all(np.hypot(*(point - p)) >= spacing for p in others)


def distinct_objects(
    rng: np.random.Generator, points: list[Span], shapes: tuple[str, ...] = SHAPES
) -> tuple[ObjectSpec, ...]:
    """One object at each point, with distinct colours and, if there are enough, distinct shapes."""
    colors = rng.permutation(list(COLORS))
    order = rng.permutation(shapes)
    return tuple(
        turned(rng, str(color), str(order[i % len(order)]), x, y)
        for i, ((x, y), color) in enumerate(zip(points, colors, strict=False))
    )


def turned(rng: np.random.Generator, color: str, shape: str, x: float, y: float) -> ObjectSpec:
    """An object that faces the shoulder, up to a random rotation."""
    return ObjectSpec(color, shape, x, y, azimuth(np.array([x, y])) + rng.uniform(-YAW_SPREAD, YAW_SPREAD))


def goals(rng: np.random.Generator, kind: str, x: Span, y: Span) -> tuple[GoalSpec, ...]:
    """Two bowls or zones of different colours, one on each side."""
    colors = rng.permutation(list(COLORS))[:2]
    return tuple(
        GoalSpec(kind, str(color), side, float(rng.uniform(*x)), sign * float(rng.uniform(*y)))
        for color, (side, sign) in zip(colors, (("left", 1), ("right", -1)), strict=True)
    )


def goal_names(goal: GoalSpec) -> tuple[str, ...]:
    """The unique names of a goal in its scene."""
    return (f"the {goal.color} {goal.kind}", f"the {goal.side} {'bowl' if goal.kind == 'bowl' else 'edge'}")
