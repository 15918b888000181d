"""Vision-language-action policies: train from demonstrations, try in simulation, run on a real arm.

>>> import vla
>>> env = vla.make_env("pick")
>>> policy = vla.load_policy("outputs/train")
>>> observation, _ = env.reset(seed=0)
>>> chunk = policy.predict(observation)
>>> for action in chunk.actions[:3]:
...     observation, reward, terminated, truncated, info = env.step(action)

`gymnasium.make("vla/SO101-Pick-v1")` makes the same environment. Nothing heavy is imported before it is used.
"""

from __future__ import annotations

import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    import gymnasium

    from vla.datasets.episodes import EpisodeStore
    from vla.envs.tasks.task import Task
    from vla.models.action_heads.action_head import Head
    from vla.policies.loaded import LoadedPolicy
    from vla.robots.robot import Robot

__all__ = [
    "__version__",
    "load_policy",
    "make_env",
    "open_store",
    "register_action_head",
    "register_robot",
    "register_task",
]

__version__ = "0.2.0"


def make_env(name: str, **options: Any) -> gymnasium.Env[Any, Any]:
    """Makes the environment of a task.

    Args:
        name: a task ("pick"), a Gymnasium id ("vla/SO101-Pick-v1"), or one of another suite ("metaworld/reach-v3").
        options: arguments of the environment, such as `image_size=128` or `randomize=False`.

    Raises:
        InputError: there is no such task.
    """
    from vla.envs.make import make_env

    return make_env(name, **options)


def load_policy(name: str | Path, env: gymnasium.Env[Any, Any] | None = None) -> LoadedPolicy:
    """Loads a policy that takes the observations of an environment.

    Args:
        name: the folder of a training run or of a checkpoint, "hub:user/model", "lerobot:FOLDER", "ws://HOST:PORT"
            of `vla serve`, or "expert" or "hold".
        env: the environment to act in; needed by scripted policies, by those of LeRobot, and where a checkpoint drives
            several robots.

    Raises:
        InputError: there is no such policy, or it needs an environment.
    """
    from vla.policies.loaded import load

    return load(str(name), env)


def open_store(path: str | Path, mode: str = "r") -> EpisodeStore:
    """Opens an existing store of episodes: `len(store)` of them, each read by `store[i]`.

    Args:
        path: a folder, or an address such as s3://bucket/demos.zarr.
        mode: "r" to read, "a" to append too.

    Raises:
        InputError: there is no store at `path`, or no such mode.
    """
    from vla.datasets.episodes import EpisodeStore
    from vla.errors import unknown

    if mode not in ("r", "a"):
        raise unknown("mode", mode, ("r", "a"))
    return EpisodeStore.open(path, mode)  # type: ignore[arg-type]


def register_task(task: type[Task]) -> None:
    """Adds a task to this process, under its `name`: `make_env`, the commands and `gymnasium.make` then know it.

    A package adds one to every process by an entry point of the group "vla.tasks"; so do the two functions below with
    "vla.action_heads" and "vla.robots".

    Raises:
        InputError: it is no class with a `name`, or not at the top level of a module.
    """
    from vla.common.plugins import TASKS, register
    from vla.envs import register_envs
    from vla.errors import InputError

    if not isinstance(task, type) or not isinstance(getattr(task, "name", None), str):
        raise InputError(f"register_task takes a class of vla.envs.tasks.task.Task with a name, not {task!r}")
    register(TASKS, task.name, task)
    register_envs()


def register_action_head(name: str, head: Callable[..., Head]) -> None:
    """Adds an action head to this process: `head=NAME` in `vla train`, and in the checkpoints that it writes.

    Args:
        name: what it is selected by, and the "kind" in its `settings`.
        head: a class or function that makes a head of a `Vocabulary` and of its options.

    Raises:
        InputError: `head` is not at the top level of a module.
    """
    from vla.common.plugins import HEADS, register

    register(HEADS, name, head)


def register_robot(name: str, robot: Callable[..., Robot]) -> None:
    """Adds a robot to this process: `robot=NAME` in the commands, its arguments as `robot.KEY=VALUE`.

    Raises:
        InputError: `robot` is not at the top level of a module.
    """
    from vla.common.plugins import ROBOTS, register

    register(ROBOTS, name, robot)


GYMNASIUM = "gymnasium.envs.registration"


class _RegisterEnvs(MetaPathFinder):
    """Registers the environments when Gymnasium is imported: importing it here would take longer than `vla --help`."""

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != GYMNASIUM:
            return None
        sys.meta_path.remove(self)
        if (spec := find_spec(name)) is not None and spec.loader is not None:
            spec.loader = _Registering(spec.loader)
        return spec


class _Registering(Loader):
    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        _register()


def _register() -> None:
    from vla.envs import register_envs

    register_envs()


if GYMNASIUM in sys.modules:
    _register()
else:
    sys.meta_path.insert(0, _RegisterEnvs())
