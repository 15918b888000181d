"""Tasks, action heads and robots of other packages, which name them by entry points of their distributions."""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from vla.errors import InputError

TASKS, HEADS, ROBOTS = "vla.tasks", "vla.action_heads", "vla.robots"
"""The groups. A task's entry point is a class of `vla.envs.tasks.task.Task`, a head's what makes an `ActionHead` of a
vocabulary and settings, a robot's what makes a `Robot` of its options."""


@cache
def installed(group: str) -> dict[str, EntryPoint]:
    """The entry points of a group, by name; nothing of them is imported."""
    return {point.name: point for point in entry_points(group=group)}


def load_plugin(group: str, name: str) -> Any:
    """What the entry point `name` of a group refers to. Raises InputError where it cannot be imported."""
    point = installed(group)[name]
    try:
        return point.load()
    except Exception as error:
        package = point.dist.name if point.dist else point.value
        raise InputError(f"{name} of the package {package} cannot be imported ({point.value}): {error}") from error
