"""The simulated SO-101 for lerobot-eval: --env.type=vla --env.task=pick."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import register
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.envs.configs import EnvConfig

GYM_ID = "lerobot_policy_vla/SO101-v1"
SIZE = 96
JOINTS = 6


@EnvConfig.register_subclass("vla")
@dataclass
class VlaEnvConfig(EnvConfig):
    """A task of `vla.envs`, with the scenes of `vla eval` for the same seeds. `fps` is the environment's rate."""

    task: str | None = "pick"
    fps: int = 10
    phrasing: str = "heldout"
    randomize: bool = True
    features: dict[str, PolicyFeature] = field(
        default_factory=lambda: {
            "action": PolicyFeature(FeatureType.ACTION, (JOINTS,)),
            "agent_pos": PolicyFeature(FeatureType.STATE, (JOINTS,)),
            "pixels/front": PolicyFeature(FeatureType.VISUAL, (SIZE, SIZE, 3)),
            "pixels/wrist": PolicyFeature(FeatureType.VISUAL, (SIZE, SIZE, 3)),
        }
    )
    features_map: dict[str, str] = field(
        default_factory=lambda: {
            "action": "action",
            "agent_pos": "observation.state",
            "pixels/front": "observation.images.front",
            "pixels/wrist": "observation.images.wrist",
        }
    )

    @property
    def gym_id(self) -> str:
        """The Gymnasium id."""
        return GYM_ID

    @property
    def gym_kwargs(self) -> dict[str, Any]:
        """Arguments of the environment."""
        return {"task": self.task, "phrasing": self.phrasing, "randomize": self.randomize}


class LeRobotView(gym.ObservationWrapper):
    """The environment with LeRobot's names: pixels by camera, agent_pos, and the instruction as task_description."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        spaces = env.observation_space
        self.observation_space = gym.spaces.Dict(pixels=spaces["images"], agent_pos=spaces["state"])  # type: ignore[index]
        self.task_description = ""

    def observation(self, observation: dict[str, Any]) -> dict[str, Any]:
        """Renames the values of an observation."""
        self.task_description = str(observation["instruction"])
        return {"pixels": observation["images"], "agent_pos": observation["state"]}


def make(task: str, phrasing: str, randomize: bool, render_mode: str = "rgb_array") -> gym.Env[Any, Any]:
    """Makes the environment. Raises InputError for an unknown task or phrasing."""
    from vla.envs.make import make_env

    return LeRobotView(make_env(task, phrasing=phrasing, randomize=randomize, render_mode=render_mode))


register(GYM_ID, entry_point="lerobot_policy_vla.environment_vla:make")
