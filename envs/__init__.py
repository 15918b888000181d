"""Gymnasium environments on MuJoCo, registered when Gymnasium is imported after `vla`.

The registration loads neither MuJoCo nor a model.

>>> import gymnasium
>>> env = gymnasium.make("vla/SO101-Pick-v1")
"""

from __future__ import annotations

from vla.common.plugins import TASKS, installed

MAX_STEPS = {
    "pick": 100,
    "place": 150,
    "push": 150,
    "stack": 200,
    "sort": 400,
    "press": 100,
    "drawer-open": 150,
    "drawer-close": 150,
    "order": 450,
    "count": 250,
    "relation": 100,
    "bimanual-lift": 150,
}
"""Control steps after which an episode is truncated, by task."""
TWO_ARMS = ("bimanual-lift",)
"""The tasks with two arms."""
CONTROL_HZ = 10.0
"""Actions a second of every task on the table [Hz]."""
PLUGIN_STEPS = 200
"""The same of a task of another package."""


def env_id(task: str) -> str:
    """The Gymnasium id of a task, for example "vla/SO101-DrawerOpen-v1" for "drawer-open"."""
    return f"vla/SO101-{''.join(word.capitalize() for word in task.split('-'))}-v1"


def register_envs() -> None:
    """Registers the environment of every task with Gymnasium, which calls this when it is imported."""
    from gymnasium.envs.registration import register, registry

    for task in task_names():
        if env_id(task) not in registry:
            steps = MAX_STEPS.get(task, PLUGIN_STEPS)
            entry_point = "vla.envs.so101:SO101Env"
            register(id=env_id(task), entry_point=entry_point, kwargs={"task": task}, max_episode_steps=steps)


def task_names() -> tuple[str, ...]:
    """The tasks, also those of other packages."""
    return (*MAX_STEPS, *(name for name in installed(TASKS) if name not in MAX_STEPS))
