"""Environments by name."""

from __future__ import annotations

from typing import Any

import gymnasium as gym

import vla.envs
from vla.errors import InputError


def make_env(name: str, **kwargs: Any) -> gym.Env[Any, Any]:
    """The environment of a task ("pick") or of a Gymnasium id ("vla/SO101Pick-v1"), with its step limit.

    Raises InputError for a name that is neither, listing the tasks.
    """
    tasks = {task: f"vla/SO101{task.capitalize()}-v1" for task in vla.envs.MAX_STEPS}
    known = set(tasks.values())
    name = tasks.get(name, name)
    if name not in known:
        raise InputError(f"unknown task {name!r}; known: {', '.join(tasks)}")
    # Gymnasium's checker repeats on every environment what the tests check once.
    return gym.make(name, disable_env_checker=True, **kwargs)
