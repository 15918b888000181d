"""Rearrangement tasks with several moves: stack, sort, order, count."""

from __future__ import annotations

from abc import abstractmethod
from itertools import pairwise, permutations
from typing import override

import numpy as np
from jaxtyping import Float

from vla.envs.ik import azimuth
from vla.envs.objects import COLORS, Furniture, GoalSpec, Layout
from vla.envs.primitives import Command, Move, carry_out, direction, grasped, held, in_bowl, settled
from vla.envs.scene import TableScene
from vla.envs.tasks.place import BOWLS
from vla.envs.tasks.task import Span, Task, distinct_objects, goal_names, goals, scatter, shifted, turned

PLURALS = {"cube": "cubes", "ball": "balls", "cylinder": "cylinders"}
ORDERS = tuple(permutations(range(3)))
CUBES = tuple(f"{color} cube" for color in COLORS)
BESIDE = 0.020
"""The distance from a bowl's centre at which one of two objects is dropped [m]."""
CUBES_ONLY = Furniture(shapes=("cube",), goals=0)


class Rearrangement(Task):
    """A task defined by a list of moves; the expert executes the first unfinished one."""

    @abstractmethod
    def moves(self, scene: TableScene, target: int, goal: int) -> list[Move]:
        """The moves in order of execution."""

    @override
    def done(self, scene: TableScene, target: int, goal: int) -> bool:
        return all(settled(scene, move) for move in self.moves(scene, target, goal))

    @override
    def plan(self, scene: TableScene, target: int, goal: int) -> Command:
        return carry_out(scene, self.moves(scene, target, goal))

    @override
    def points(self, scene: TableScene, target: int, goal: int) -> list[Float[np.ndarray, "3"]]:
        moves = self.moves(scene, target, goal)
        move = next((move for move in moves if not settled(scene, move)), moves[-1])
        return [scene.object_position(move.item), move.position]


class Stack(Rearrangement):
    """Success: the named cube is on the other one and released."""

    name = "stack"
    furniture = CUBES_ONLY
    vocabulary = {"object": CUBES, "base": CUBES}
    templates = {
        "train": (
            "stack the {object} on the {base}",
            "put the {object} on top of the {base}",
            "place the {object} on the {base}",
            "pick up the {object} and put it on the {base}",
            "build a tower of the {object} on the {base}",
        ),
        "heldout": ("could you stack the {object} onto the {base}", "the {object} goes on top of the {base}"),
    }
    outside = (((0.29, 0.32), (-0.10, 0.10)),)

    @override
    def layout(self, rng: np.random.Generator) -> Layout:
        return Layout(distinct_objects(rng, scatter(rng, 3, (0.165, 0.27), (-0.10, 0.10), 0.085), ("cube",)))

    @override
    def choices(self, layout: Layout) -> tuple[int, int]:
        return 3, 2

    def _base(self, target: int, goal: int) -> int:
        return (target + 1 + goal) % 3

    @override
    def words(self, scene: TableScene, target: int, goal: int) -> dict[str, tuple[str, ...]]:
        base = scene.objects[self._base(target, goal)]
        return {"object": (scene.objects[target].name,), "base": (base.name,)}

    @override
    def moves(self, scene: TableScene, target: int, goal: int) -> list[Move]:
        base = self._base(target, goal)
        halves = scene.objects[target].half_extents[2] + scene.objects[base].half_extents[2]
        return [Move(target, scene.object_position(base) + (0, 0, halves))]


class Order(Rearrangement):
    """Success: the cubes are in a row across the table, from the robot's left to its right in the named order."""

    name = "order"
    furniture = CUBES_ONLY
    vocabulary = {"colors": tuple(", ".join(row) for row in permutations(COLORS, 3))}
    templates = {
        "train": (
            "put the cubes in a row from left to right, {colors}",
            "order the cubes from left to right, {colors}",
            "line the cubes up from left to right, {colors}",
            "arrange the cubes left to right as {colors}",
        ),
        "heldout": ("make a row of the cubes, from left to right {colors}", "i want the cubes left to right, {colors}"),
    }
    ROW_X, ROW_Y, WITHIN = 0.235, (0.135, 0.046, -0.043), 0.019
    DEPTH, GAP = 0.04, 0.045
    """The maximum depth of a row, and the minimum distance between the centres of its cubes [m]."""

    @override
    def layout(self, rng: np.random.Generator) -> Layout:
        # A column on the right is not a row in any order.
        spots = [(x + rng.uniform(-0.006, 0.006), -0.12 + rng.uniform(-0.006, 0.006)) for x in (0.165, 0.235, 0.30)]
        return Layout(distinct_objects(rng, spots, ("cube",)))

    @override
    def move_outside(self, layout: Layout, named: tuple[int, ...], rng: np.random.Generator) -> Layout:
        return shifted(layout, 0.0, 0.02)

    @override
    def occupied(self, layout: Layout) -> list[Span]:
        return [*super().occupied(layout), *((self.ROW_X, y) for y in self.ROW_Y)]

    @override
    def choices(self, layout: Layout) -> tuple[int, int]:
        return len(ORDERS), 1

    @override
    def named(self, layout: Layout, target: int, goal: int) -> tuple[int, ...]:
        return ORDERS[target][:1]

    @override
    def words(self, scene: TableScene, target: int, goal: int) -> dict[str, tuple[str, ...]]:
        return {"colors": (", ".join(scene.objects[i].color for i in ORDERS[target]),)}

    @override
    def moves(self, scene: TableScene, target: int, goal: int) -> list[Move]:
        spots = [
            (self.ROW_X, y, scene.objects[i].half_extents[2]) for i, y in zip(ORDERS[target], self.ROW_Y, strict=True)
        ]
        return [Move(i, np.array(spot), within=self.WITHIN) for i, spot in zip(ORDERS[target], spots, strict=True)]

    @override
    def done(self, scene: TableScene, target: int, goal: int) -> bool:
        row = np.stack([scene.object_position(i) for i in ORDERS[target]])
        apart = all(left[1] - right[1] > self.GAP for left, right in pairwise(row))
        flat = np.ptp(row[:, 0]) < self.DEPTH and row[:, 2].max() < 0.03
        return bool(apart and flat) and not any(held(scene, i) for i in range(3))


class Sort(Rearrangement):
    """Success: each object is in the bowl of its colour and released."""

    name = "sort"
    furniture = Furniture(shapes=("cube", "ball", "cylinder"))
    vocabulary = {"first": tuple(COLORS), "second": tuple(COLORS), "bowl": BOWLS, "other": BOWLS}
    templates = {
        "train": (
            "put the {first} ones in {bowl} and the {second} ones in {other}",
            "sort by color, {first} into {bowl}, {second} into {other}",
            "everything {first} goes in {bowl}, everything {second} in {other}",
        ),
        "heldout": (
            "sort these, the {first} things to {bowl}, the {second} things to {other}",
            "{bowl} is for {first}, {other} is for {second}, please sort",
        ),
    }
    outside = (((0.307, 0.335), (-0.09, 0.09)),)

    @override
    def layout(self, rng: np.random.Generator) -> Layout:
        colors, shapes = rng.permutation(list(COLORS))[:2], rng.permutation(self.furniture.shapes)[:2]
        group = [0, 1, int(rng.integers(2))]
        spots = scatter(rng, 3, (0.165, 0.30), (-0.064, 0.064))
        placed = zip(group, spots, strict=True)
        objects = tuple(turned(rng, str(colors[g]), str(shapes[g]), *spot) for g, spot in placed)
        return Layout(objects, goals(rng, "bowl", x=(0.19, 0.25), y=(0.170, 0.182)))

    @override
    def choices(self, layout: Layout) -> tuple[int, int]:
        return 2, 1

    @override
    def named(self, layout: Layout, target: int, goal: int) -> tuple[int, ...]:
        return tuple(i for i, o in enumerate(layout.objects) if o.color == layout.objects[0].color)

    @override
    def words(self, scene: TableScene, target: int, goal: int) -> dict[str, tuple[str, ...]]:
        first, second = (scene.objects[i].color for i in (0, 1))
        bowl, other = (goal_names(scene.goals[i]) for i in (target, 1 - target))
        return {"first": (first,), "second": (second,), "bowl": bowl, "other": other}

    def _bowl(self, scene: TableScene, index: int, target: int) -> GoalSpec:
        same = scene.objects[index].color == scene.objects[0].color
        return scene.goals[target if same else 1 - target]

    @override
    def moves(self, scene: TableScene, target: int, goal: int) -> list[Move]:
        return [move_into(scene, i, self._bowl(scene, i, target)) for i in range(len(scene.objects))]

    @override
    def wrong(self, scene: TableScene, target: int, goal: int) -> bool:
        return any(in_bowl(scene, i, self._bowl(scene, i, 1 - target)) for i in range(len(scene.objects)))


class Count(Rearrangement):
    """Success: exactly the requested number of objects of the shape is in the bowl, released, and nothing else."""

    name = "count"
    furniture = Furniture(shapes=("cube", "ball", "cylinder"), goals=1)
    vocabulary = {"count": tuple(n for s in furniture.shapes for n in (f"one {s}", f"two {PLURALS[s]}"))}
    templates = {
        "train": (
            "put {count} in the bowl",
            "place {count} in the bowl",
            "drop {count} into the bowl",
            "the bowl should hold {count}",
        ),
        "heldout": ("i would like {count} in the bowl", "could you put {count} into the bowl"),
    }
    outside = (((0.307, 0.335), (-0.12, 0.12)),)

    @override
    def layout(self, rng: np.random.Generator) -> Layout:
        many, few = (str(shape) for shape in rng.permutation(self.furniture.shapes)[:2])
        side = int(rng.choice([-1, 1]))
        across = (-0.115, 0.064) if side > 0 else (-0.064, 0.115)
        spots = scatter(rng, 4, (0.165, 0.30), across)
        placed = zip((many, many, many, few), rng.permutation(list(COLORS)), spots, strict=False)
        objects = tuple(turned(rng, str(color), shape, *spot) for shape, color, spot in placed)
        color, x, y = str(rng.choice(list(COLORS))), rng.uniform(0.19, 0.25), rng.uniform(0.170, 0.182)
        return Layout(objects, (GoalSpec("bowl", color, "left" if side > 0 else "right", float(x), side * float(y)),))

    @override
    def choices(self, layout: Layout) -> tuple[int, int]:
        return 2, 1

    @override
    def named(self, layout: Layout, target: int, goal: int) -> tuple[int, ...]:
        return 0, 1, 2

    @override
    def words(self, scene: TableScene, target: int, goal: int) -> dict[str, tuple[str, ...]]:
        shape = scene.objects[0].shape
        return {"count": (f"one {shape}" if target == 0 else f"two {PLURALS[shape]}",)}

    @override
    def moves(self, scene: TableScene, target: int, goal: int) -> list[Move]:
        # Objects in the bowl first, then the grasped one, so that the selection is stable between steps.
        bowl = scene.goals[0]
        first = sorted(range(3), key=lambda i: (not in_bowl(scene, i, bowl), not grasped(scene, i), i))
        return [move_into(scene, i, bowl) for i in first[: target + 1]]

    @override
    def done(self, scene: TableScene, target: int, goal: int) -> bool:
        return sum(in_bowl(scene, i, scene.goals[0]) for i in range(3)) == target + 1 and not self.wrong(
            scene, target, goal
        )

    @override
    def wrong(self, scene: TableScene, target: int, goal: int) -> bool:
        inside = [in_bowl(scene, i, scene.goals[0]) for i in range(4)]
        return sum(inside[:3]) > target + 1 or inside[3]


def move_into(scene: TableScene, index: int, bowl: GoalSpec) -> Move:
    """Moves object `index` into the far half of the bowl, or into the near half if the far one is occupied."""
    middle = np.array([bowl.x, bowl.y])
    outward = BESIDE * direction(azimuth(middle))
    others = [i for i in range(len(scene.objects)) if i != index and in_bowl(scene, i, bowl)]
    taken = any((scene.object_position(i)[:2] - middle) @ outward > 0 for i in others)
    return Move(index, np.array([*(middle - outward if taken else middle + outward), 0.0]), bowl)
