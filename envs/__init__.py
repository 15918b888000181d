"""Gymnasium environments on MuJoCo. Importing this package registers them, without loading MuJoCo or a model.

>>> import gymnasium, vla.envs
>>> env = gymnasium.make("vla/SO101-Pick-v1")
"""

from __future__ import annotations

import os
import sys

from gymnasium.envs.registration import register

if sys.platform == "linux" and not os.environ.get("MUJOCO_GL"):
    # MuJoCo reads this at import. EGL renders without a display.
    os.environ["MUJOCO_GL"] = "egl"
# One software-rendering thread per process: these scenes are too small for several.
os.environ.setdefault("LP_NUM_THREADS", "1")

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


def env_id(task: str) -> str:
    """The Gymnasium id of a task, for example "vla/SO101-DrawerOpen-v1" for "drawer-open"."""
    return f"vla/SO101-{''.join(word.capitalize() for word in task.split('-'))}-v1"


for _task in MAX_STEPS:
    register(
        id=env_id(_task),
        entry_point="vla.envs.so101:SO101Env",
        kwargs={"task": _task},
        max_episode_steps=MAX_STEPS[_task],
    )
