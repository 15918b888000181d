"""MuJoCo, which renders without a display unless MUJOCO_GL says otherwise. It reads that variable when imported."""

from __future__ import annotations

import os
import sys

if sys.platform == "linux" and not os.environ.get("MUJOCO_GL"):
    os.environ["MUJOCO_GL"] = "egl"
# One software-rendering thread a process: these scenes are too small to share out.
os.environ.setdefault("LP_NUM_THREADS", "1")

import mujoco

__all__ = ["mujoco"]
