"""Generalization axes: each changes one property of an episode compared with training.

| axis        | change                                                                               |
|-------------|--------------------------------------------------------------------------------------|
| object      | the named objects have a colour that is held out for their shape (HELD_OUT)          |
| relation    | the named object is in a relation that is held out from training                     |
| phrasing    | the instruction has a held-out phrasing                                              |
| position    | the named objects are at positions outside those of training                         |
| distractors | three additional objects of shapes and colours that no instruction names             |
| light       | darker or brighter, tinted and more oblique than in training                         |
| camera      | the cameras are moved and rotated farther than in training                           |
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from vla.envs.objects import COLORS, HELD_OUT, ODD_COLORS, ODD_SHAPES, ODD_SLOTS, FixtureSpec, Layout, ObjectSpec
from vla.errors import InputError, suggestion

if TYPE_CHECKING:
    from vla.envs.tasks.task import Task

AXES = ("object", "relation", "phrasing", "position", "distractors", "light", "camera")
ODD_REGION = ((0.14, 0.36), (-0.17, 0.17))
CLEAR = 0.07
"""The minimum distance of a distractor from objects and goals [m]."""


def check_axis_names(axes: Collection[str]) -> None:
    """Raises InputError if an axis is unknown."""
    if unknown := sorted(set(axes) - set(AXES)):
        raise InputError(f"unknown axis {', '.join(unknown)}{suggestion(unknown[0], AXES)}; known: {', '.join(AXES)}")


def check_axes(axes: Collection[str], task: Task) -> None:
    """Raises InputError if an axis is unknown, or the task does not have it."""
    check_axis_names(axes)
    if "relation" in axes and not task.relates:
        raise InputError(f"the task {task.name} names no relation: remove the axis relation, or set task=relation")


def stream(seed: int, axis: str) -> np.random.Generator:
    """A random stream for one axis, so that it does not change the rest of the episode."""
    return np.random.default_rng([seed, 100 + AXES.index(axis)])


def arrange(
    task: Task, layout: Layout, target: int, goal: int, axes: Collection[str], seed: int, *, holdout: bool
) -> Layout:
    """Applies the axes to a layout.

    Args:
        task: The task.
        layout: The layout.
        target: The target of the instruction.
        goal: The goal of the instruction.
        axes: The axes.
        seed: The seed of the episode.
        holdout: Whether held-out pairs of colour and shape are first removed.
    """
    named = task.named(layout, target, goal)
    if holdout:
        layout = without_held_out(layout)
    if "object" in axes:
        layout = with_held_out(layout, named)
    if "relation" in axes:
        layout = task.with_held_out_relation(layout)
    if "position" in axes:
        layout = task.move_outside(layout, named, stream(seed, "position"))
    return layout


def is_held_out(thing: ObjectSpec | FixtureSpec) -> bool:
    """Whether this pair of colour and shape is held out from training."""
    return HELD_OUT.get(thing.kind) == thing.color


def without_held_out(layout: Layout) -> Layout:
    """Replaces each colour that is held out for a shape in the layout by an unused colour."""
    things = layout.things
    colors = {thing.color: thing.color for thing in things}
    for color in list(colors):
        kinds = {thing.kind for thing in things if thing.color == color}
        free = [c for c in COLORS if c not in colors.values() and all(HELD_OUT[kind] != c for kind in kinds)]
        if any(HELD_OUT[kind] == color for kind in kinds):
            colors[color] = free[0]
    return _recolored(layout, [colors[thing.color] for thing in things])


def with_held_out(layout: Layout, named: Sequence[int]) -> Layout:
    """Gives the named objects their held-out colour; other objects of that colour get the previous one."""
    things = layout.things
    first = things[named[0]]
    new = HELD_OUT[first.kind]
    swapped = [first.color if thing.color == new else thing.color for thing in things]
    return _recolored(layout, [new if i in named else color for i, color in enumerate(swapped)])


def _recolored(layout: Layout, colors: list[str]) -> Layout:
    objects = tuple(replace(o, color=c) for o, c in zip(layout.objects, colors, strict=False))
    fixtures = tuple(replace(f, color=c) for f, c in zip(layout.fixtures, colors[len(objects) :], strict=True))
    return replace(layout, objects=objects, fixtures=fixtures)


def distractors(task: Task, layout: Layout, rng: np.random.Generator) -> tuple[ObjectSpec, ...]:
    """Up to ODD_SLOTS objects of other shapes and colours, clear of the objects and goals of the task."""
    taken, found = task.occupied(layout), list[ObjectSpec]()
    colors = rng.permutation(list(ODD_COLORS))
    for _ in range(400):
        spot = np.array([rng.uniform(*span) for span in ODD_REGION])
        if len(found) < ODD_SLOTS and all(np.hypot(*(spot - other)) > CLEAR for other in taken):
            shape, yaw = str(rng.choice(ODD_SHAPES)), float(rng.uniform(-np.pi, np.pi))
            found.append(ObjectSpec(str(colors[len(found)]), shape, float(spot[0]), float(spot[1]), yaw))
            taken.append((found[-1].x, found[-1].y))
    return tuple(found)
