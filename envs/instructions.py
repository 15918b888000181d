"""What the robot is told: several phrasings for each task, some held out from training."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np

from vla.envs.objects import COLORS, SHAPES, GoalSpec, ObjectSpec
from vla.errors import InputError

PHRASING_SETS = ("train", "heldout")
MAX_LENGTH = 96
CHARACTERS = "abcdefghijklmnopqrstuvwxyz ,"

TEMPLATES: dict[str, dict[str, tuple[str, ...]]] = {
    "pick": {
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
    },
    "place": {
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
    },
    "push": {
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
    },
}


def instruction(task: str, target: ObjectSpec, goal: GoalSpec | None, phrasing: str, rng: np.random.Generator) -> str:
    """A random phrasing from the set `phrasing` ("train" or "heldout"). Raises InputError for an unknown set."""
    check_phrasing(phrasing)
    template = str(rng.choice(TEMPLATES[task][phrasing]))
    names = () if goal is None else goal_names(goal)
    # Always draw, so that every task uses the generator alike.
    pick = int(rng.integers(max(len(names), 1)))
    return template.format(object=target.name, goal=names[pick] if names else "")


def every_instruction() -> Iterator[str]:
    """All phrasings of all tasks for all objects, with one goal of each kind: what a tokenizer should know."""
    goals = ("the green bowl", "the right bowl", "the blue zone", "the left edge")
    for sets in TEMPLATES.values():
        for template in (t for templates in sets.values() for t in templates):
            for color, shape in product(COLORS, SHAPES):
                for goal in goals if "{goal}" in template else ("",):
                    yield template.format(object=f"{color} {shape}", goal=goal)


def goal_names(goal: GoalSpec) -> tuple[str, ...]:
    """The ways to name a goal, each of them unique in its scene."""
    if goal.kind == "bowl":
        return (f"the {goal.color} bowl", f"the {goal.side} bowl")
    return (f"the {goal.color} zone", f"the {goal.side} edge")


def check_phrasing(phrasing: str) -> None:
    """Raises InputError for an unknown set of phrasings."""
    if phrasing not in PHRASING_SETS:
        raise InputError(f"unknown phrasing set {phrasing!r}; known: {', '.join(PHRASING_SETS)}")
