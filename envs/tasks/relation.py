"""Pick up one of two equal objects, identified by its relation to a third object."""

from __future__ import annotations

from dataclasses import replace
from typing import override

import numpy as np
from jaxtyping import Float

from vla.envs.objects import COLORS, SHAPES, Layout
from vla.envs.scene import TableScene
from vla.envs.tasks.pick import Pick
from vla.envs.tasks.task import NOUNS, shifted, turned

RELATIONS = ("left of", "right of")
HELD_OUT_RELATIONS = ("farther from the robot than", "closer to the robot than")
"""Relations of the axis "relation", held out from training. Left and right are from the robot's perspective; questions
of `vla record task=scenes` contain "closer to the robot"."""


class Relation(Pick):
    """Success: the object in the named relation is lifted."""

    name = "relation"
    relates = True
    vocabulary = {
        "object": tuple(f"{noun} {relation}" for relation in RELATIONS for noun in NOUNS),
        "reference": NOUNS,
    }
    templates = {
        split: tuple(t.replace("{object}", "{object} the {reference}") for t in phrasings)
        for split, phrasings in Pick.templates.items()
    }

    @override
    def layout(self, rng: np.random.Generator) -> Layout:
        colors, shapes = rng.permutation(list(COLORS))[:2], rng.permutation(SHAPES)[:2]
        x, y = rng.uniform(0.232, 0.242), rng.uniform(-0.02, 0.02)
        spots = [(rng.uniform(-0.008, 0.008), side * rng.uniform(0.074, 0.085)) for side in (1, -1)] + [(0.0, 0.0)]
        placed = zip((0, 0, 1), spots, strict=True)
        return Layout(tuple(turned(rng, str(colors[i]), str(shapes[i]), x + dx, y + dy) for i, (dx, dy) in placed))

    @override
    def with_held_out_relation(self, layout: Layout) -> Layout:
        # A quarter turn about the third object moves the other two farther and closer.
        middle = layout.objects[2]
        twins = (replace(o, x=middle.x + o.y - middle.y, y=middle.y - o.x + middle.x) for o in layout.objects[:2])
        return replace(layout, objects=(*twins, middle))

    @override
    def choices(self, layout: Layout) -> tuple[int, int]:
        return 2, 1

    @override
    def named(self, layout: Layout, target: int, goal: int) -> tuple[int, ...]:
        return 0, 1

    @override
    def words(self, scene: TableScene, target: int, goal: int) -> dict[str, tuple[str, ...]]:
        one, third = scene.objects[target], scene.objects[2]
        across = abs(one.y - third.y) > abs(one.x - third.x)
        relation = (RELATIONS if across else HELD_OUT_RELATIONS)[target]
        return {"object": (f"{one.name} {relation}",), "reference": (third.name,)}

    @override
    def points(self, scene: TableScene, target: int, goal: int) -> list[Float[np.ndarray, "3"]]:
        return [scene.object_position(target), scene.object_position(2)]

    @override
    def move_outside(self, layout: Layout, named: tuple[int, ...], rng: np.random.Generator) -> Layout:
        return shifted(layout, 0.0, 0.06 * rng.choice([-1, 1]))
