"""Gymnasium environments on MuJoCo. Importing this registers them and loads neither MuJoCo nor a model.

>>> import gymnasium, vla.envs
>>> env = gymnasium.make("vla/SO101Pick-v1")
"""

from __future__ import annotations

import os
import sys

from gymnasium.envs.registration import register

if sys.platform == "linux":
    # MuJoCo reads this when it is imported. EGL draws without a display.
    os.environ.setdefault("MUJOCO_GL", "egl")
# One software-rendering thread a process: these scenes are too small to share out.
os.environ.setdefault("LP_NUM_THREADS", "1")

MAX_STEPS = {"pick": 100, "place": 150, "push": 150}
"""Control steps after which an episode is truncated, by task."""

for _task in MAX_STEPS:
    register(
        id=f"vla/SO101{_task.capitalize()}-v1",
        entry_point="vla.envs.so101:SO101Env",
        kwargs={"task": _task},
        max_episode_steps=MAX_STEPS[_task],
    )
