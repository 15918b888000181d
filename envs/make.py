"""Environments by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import vla.envs
from vla.errors import InputError, suggestion, unknown

if TYPE_CHECKING:
    import gymnasium as gym


def make_env(name: str, **kwargs: Any) -> gym.Env[Any, Any]:
    """Makes an environment with its step limit.

    Args:
        name: A task ("pick"), a Gymnasium id ("vla/SO101-Pick-v1"), or a task of another suite ("metaworld/reach-v3",
            "my.yaml": `vla.envs.suites`).
        **kwargs: Arguments of the environment.

    Raises:
        InputError: the name or an argument is unknown.
    """
    ids = _ids()
    if name not in ids and name not in ids.values():
        _read(name)
        _check_arguments(kwargs, _of_suite)
        return _of_suite(name, **kwargs)
    import gymnasium as gym  # takes a third of a second, which the checks of names save

    from vla.envs.so101 import SO101Env

    _check_plugin(name, ids)
    _check_arguments(kwargs, SO101Env, "max_episode_steps")
    # The tests run Gymnasium's checker once, so that it is not needed for every environment.
    return gym.make(ids.get(name, name), disable_env_checker=True, **kwargs)


def is_task(name: str) -> bool:
    """Whether `make_env` accepts this name."""
    from vla.envs.suites.config import is_suite

    ids = _ids()
    return name in ids or name in ids.values() or is_suite(name)


def check_one_arm(name: str) -> None:
    """Raises InputError for a task that does not have one SO-101; of a plug-in, only its environment shows it."""
    from vla.envs.suites.config import is_suite

    if is_suite(name) or name in vla.envs.TWO_ARMS or name in map(vla.envs.env_id, vla.envs.TWO_ARMS):
        raise not_one_arm(name)


def not_one_arm(name: str) -> InputError:
    """The error for a task that does not have one SO-101."""
    return InputError(f"{name} does not have one SO-101: choose a task that has, such as pick")


def check_task(name: str, axes: Sequence[str], *, swap: bool) -> None:
    """Raises InputError for an unknown task, or if it does not support an axis or swapped instructions."""
    ids = _ids()
    name = next((task for task, env_id in ids.items() if env_id == name), name)
    if name in ids:
        from vla.envs.axes import check_axes
        from vla.envs.tasks import get_task

        check_axes(axes, get_task(name))
        return
    _read(name)
    if axes or swap:
        raise InputError(
            f"{name} supports neither axes nor swapped instructions: set axes=[] axes_report=[] swap=false"
        )


def _check_arguments(arguments: Mapping[str, Any], function: Callable[..., Any], *more: str) -> None:
    """Raises InputError for a keyword that is neither one of `function`, apart from the task, nor of `more`."""
    known = [*inspect.signature(function).parameters, *more]
    known = [name for name in known if name not in ("name", "task")]
    for name in arguments:
        if name not in known:
            raise unknown("environment argument", name, known)


def _check_plugin(name: str, ids: Mapping[str, str]) -> None:
    """Raises InputError for an invalid task of another package; inside `gym.make` the message would be longer."""
    task = next((task for task, env_id in ids.items() if name in (task, env_id)), name)
    if task not in vla.envs.MAX_STEPS:
        from vla.envs.tasks import get_task

        get_task(task)


def _ids() -> dict[str, str]:
    return {task: vla.envs.env_id(task) for task in vla.envs.task_names()}


def _read(name: str) -> Any:
    from vla.envs.suites.config import is_suite, read_suite, suites

    if not is_suite(name):
        others = ", ".join(f"{suite}/TASK" for suite in suites())
        near = suggestion(name, _ids())
        raise InputError(f"unknown task {name!r}{near}; known: {', '.join(_ids())}; {others}, or a FILE.yaml")
    return read_suite(name)


def _of_suite(
    name: str,
    *,
    axes: Sequence[str] = (),
    image_size: int | None = None,
    images: bool = True,
    randomize: bool = True,
    phrasing: str = "train",
    holdout: bool = False,
) -> gym.Env[Any, Any]:
    """Scenes and instructions are those of the suite; only the image options apply."""
    check_task(name, axes, swap=False)
    from vla.envs.suites.env import SuiteEnv

    return SuiteEnv(_read(name), image_size, images)
