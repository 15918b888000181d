"""gym-aloha's pair of ViperX arms (Zhao et al. 2023, arXiv 2304.13705): `vla/Aloha-v0`, with `task`.

The package renders three images of 640 x 480 with every observation; here images are rendered only on request.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from dm_control.rl import control
from gym_aloha.constants import DT
from gym_aloha.env import AlohaEnv
from gym_aloha.tasks.sim import InsertionTask, TransferCubeTask
from gymnasium.envs.registration import register
from jaxtyping import Float


class _WithoutImages:
    def get_observation(self, physics: Any) -> dict[str, Float[np.ndarray, "14"]]:
        return {"qpos": self.get_qpos(physics)}  # type: ignore[attr-defined]


class _TransferCube(_WithoutImages, TransferCubeTask):
    pass


class _Insertion(_WithoutImages, InsertionTask):
    pass


class ViperXEnv(AlohaEnv):
    """Absolute joint targets [rad] and gripper openings (0 closed, 1 open), at 50 Hz."""

    def _make_env_task(self, task_name: str) -> control.Environment:
        made = super()._make_env_task(task_name)
        task = {"transfer_cube": _TransferCube, "insertion": _Insertion}[task_name]()
        return control.Environment(made.physics, task, float("inf"), control_timestep=DT)

    def _format_raw_obs(self, raw_obs: dict[str, Any]) -> dict[str, Any]:
        return {"agent_pos": raw_obs["qpos"]}


register(id="vla/Aloha-v0", entry_point=f"{__name__}:ViperXEnv", kwargs={"obs_type": "pixels_agent_pos"})
