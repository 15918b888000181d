"""LIBERO (Liu et al. 2023, arXiv 2306.03310): `vla/Libero-v0`, with `task` such as "spatial-3" or "10-0".

The seed determines the positions of objects within the task's regions. The fixed initial states of the official
benchmark are pickles, which are not loaded.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, override

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import register
from jaxtyping import Float

from vla.errors import InputError

_CONFIG = Path(os.environ.get("LIBERO_CONFIG_PATH", "~/.libero")).expanduser() / "config.yaml"
if not _CONFIG.exists():  # importing LIBERO would prompt on the terminal
    raise InputError(f"LIBERO is not set up: there is no {_CONFIG}; see docs/suites.md")

from libero.libero import get_libero_path  # type: ignore[import-not-found]  # noqa: E402
from libero.libero.envs.env_wrapper import ControlEnv  # type: ignore[import-not-found]  # noqa: E402


class LiberoEnv(gym.Env[dict[str, Any], Float[np.ndarray, "7"]]):
    """A Panda with end-effector deltas (6) and a gripper command, at 20 Hz."""

    def __init__(self, task: str) -> None:
        suite, _, index = task.partition("-")
        folder = Path(get_libero_path("bddl_files")) / f"libero_{suite}"
        files = sorted(folder.glob("*.bddl"))
        self.control = ControlEnv(
            bddl_file_name=str(files[int(index)]), use_camera_obs=False, has_offscreen_renderer=False
        )
        self.action_space = spaces.Box(-1, 1, (7,), np.float32)
        self.observation_space = spaces.Dict()

    @override
    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        before = np.random.get_state()
        np.random.seed(seed)  # LIBERO uses only the global generator
        try:
            observation = self.control.reset()
        finally:
            np.random.set_state(before)
        return observation, {"instruction": self.control.language_instruction}

    @override
    def step(self, action: Float[np.ndarray, "7"]) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, _, _ = self.control.step(action)
        return observation, float(reward), False, False, {"success": self.control.check_success()}

    @override
    def close(self) -> None:
        self.control.close()


register(id="vla/Libero-v0", entry_point=f"{__name__}:LiberoEnv")
