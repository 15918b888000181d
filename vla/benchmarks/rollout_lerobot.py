"""LeRobot's evaluation as a contestant of `vla bench rollout`."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import torch
from lerobot.envs.configs import EnvConfig
from lerobot.envs.factory import make_env
from lerobot.scripts.lerobot_eval import rollout

from lerobot_policy_vla.configuration_vla import VlaConfig
from lerobot_policy_vla.environment_vla import VlaEnvConfig, make
from lerobot_policy_vla.modeling_vla import VlaPolicy
from lerobot_policy_vla.processor_vla import make_vla_pre_post_processors
from vla.benchmarks import rollout as bench
from vla.models.vla import VLA

GYM_ID = "vla/bench-rollout-v1"


def ending(**options: Any) -> gymnasium.Env[Any, Any]:
    return bench.Ends(make(**options))


gymnasium.register(GYM_ID, entry_point="vla.benchmarks.rollout_lerobot:ending")


@EnvConfig.register_subclass("vla-bench")
@dataclass
class EndingConfig(VlaEnvConfig):
    """The plug-in's environment, with episode lengths as with a trained policy."""

    @property
    def gym_id(self) -> str:
        return GYM_ID


def contestant(policy: Path, closing: ExitStack, *, use_async: bool) -> Callable[[int], tuple[float, float, float]]:
    """A function that runs LeRobot's `rollout` for a round, and returns episodes, control steps and seconds.

    Torch has one thread, as in our processes; more threads are not faster at this batch size.

    Args:
        policy: The folder of the policy.
        closing: Closes the environments.
        use_async: Whether the vector environments are asynchronous.
    """
    torch.set_num_threads(1)
    config = VlaConfig(n_action_steps=bench.N_ACTION_STEPS)
    driver = VlaPolicy(config, model=VLA.load(policy))
    described = EndingConfig(task=bench.TASK)
    (envs,) = make_env(described, n_envs=bench.ENVS, use_async_envs=use_async)[described.type].values()
    closing.callback(envs.close)
    pipelines: tuple[Any, ...] = (*described.get_env_processors(), *make_vla_pre_post_processors(config))

    def once(turn: int) -> tuple[float, float, float]:
        start, steps, seeds = time.perf_counter(), 0, bench.seeds(turn)
        for first in range(0, len(seeds), bench.ENVS):
            done = rollout(envs, driver, *pipelines, seeds=list(seeds[first : first + bench.ENVS]))
            steps += int((~done["done"]).sum()) + bench.ENVS  # of each episode, until it ended
        return bench.ENVS * bench.WAVES, steps, time.perf_counter() - start

    return once
