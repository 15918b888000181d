"""MetaWorld (Yu et al. 2019, arXiv 1910.10897): `vla/MetaWorld-v0`, with the task `env_name`, and its experts.

The original `reset` ignores the seed; scenes are fixed or sampled from NumPy's global generator.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, override

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import register
from jaxtyping import Float
from metaworld.env_dict import ALL_V3_ENVIRONMENTS
from metaworld.policies import ENV_POLICY_MAP
from metaworld.sawyer_xyz_env import SawyerXYZEnv


class Seeded(gym.Wrapper[Any, Any, Any, Any]):
    """Makes scenes depend on the seed only."""

    @override
    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if seed is not None:
            self.unwrapped.seed(seed)  # type: ignore[attr-defined]
        return self.env.reset()


def make(env_name: str) -> Seeded:
    """A task of MetaWorld with its goal in the observation, for the expert; the policy does not receive it."""
    env = ALL_V3_ENVIRONMENTS[env_name]()
    env._partially_observable, env._freeze_rand_vec, env._set_task_called = False, False, True
    env.seeded_rand_vec = True
    del env.sawyer_observation_space  # cached without the goal
    return Seeded(env)


def expert(env: SawyerXYZEnv) -> Callable[[Float[np.ndarray, "o"]], Float[np.ndarray, "4"]]:
    """The scripted policy of the environment's task."""
    policies: dict[type, Any] = {ALL_V3_ENVIRONMENTS[name]: policy for name, policy in ENV_POLICY_MAP.items()}
    policy = policies[type(env)]()

    def act(observation: Float[np.ndarray, "o"]) -> Float[np.ndarray, "4"]:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Constant.s. may be too high")  # the action is clipped
            return np.asarray(policy.get_action(observation), np.float64)

    return act


register(id="vla/MetaWorld-v0", entry_point=f"{__name__}:make")
