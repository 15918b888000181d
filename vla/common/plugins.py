"""Tasks, action heads and robots of other packages, which name them by entry points of their distributions."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

from vla.errors import InputError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

TASKS, HEADS, ROBOTS = "vla.tasks", "vla.action_heads", "vla.robots"
"""The groups. A task's entry point is a class of `vla.envs.tasks.task.Task`, a head's what makes an `ActionHead` of a
vocabulary and settings, a robot's what makes a `Robot` of its options."""


_REGISTERED: dict[str, dict[str, EntryPoint]] = {}
"""What `register` added, by group and name."""


@cache
def installed(group: str) -> dict[str, EntryPoint]:
    """The entry points of a group, by name, with what is registered; nothing of them is imported."""
    from importlib.metadata import entry_points  # takes a quarter of the time of `vla --help`

    return {point.name: point for point in entry_points(group=group)} | _REGISTERED.get(group, {})


def register(group: str, name: str, plugin: Callable[..., Any]) -> None:
    """Adds a plug-in to this process, as an entry point of an installed package would.

    Args:
        group: one of `TASKS`, `HEADS` and `ROBOTS`.
        name: what it is selected by; a registered name replaces an installed one.
        plugin: a class or function at the top level of its module. A module that registers when it is imported also
            does so in the worker processes that the module's script starts.

    Raises:
        InputError: `plugin` is neither a class nor a function, or is defined inside a function, where no other process
            could import it.
    """
    from importlib.metadata import EntryPoint

    if not callable(plugin) or not hasattr(plugin, "__qualname__"):
        raise InputError(f"{name}: register a class or a function, not {plugin!r}")
    if "<" in plugin.__qualname__:
        raise InputError(f"{name}: define {plugin.__qualname__} at the top level of a module")
    point = EntryPoint(name, f"{plugin.__module__}:{plugin.__qualname__}", group)
    _REGISTERED.setdefault(group, {})[name] = point
    installed.cache_clear()


def load_plugin(group: str, name: str) -> Any:
    """What the entry point `name` of a group refers to. Raises InputError where it cannot be imported."""
    point = installed(group)[name]
    try:
        return point.load()
    except Exception as error:
        package = point.dist.name if point.dist else point.value
        raise InputError(f"{name} of the package {package} cannot be imported ({point.value}): {error}") from error


def plugin_parameters(group: str, name: str) -> list[inspect.Parameter]:
    """The parameters of a plug-in, without * and **; it is imported only if its source does not state them plainly.

    Raises:
        InputError: the plug-in cannot be imported.
    """
    from vla.common.source_signature import parameters_of

    target = installed(group)[name].value
    found = None if target.partition(":")[0] in sys.modules else parameters_of(target)
    if found is None:
        found = list(inspect.signature(load_plugin(group, name)).parameters.values())
    return [p for p in found if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
