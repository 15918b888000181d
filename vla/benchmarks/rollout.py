"""`vla bench rollout`: episodes a minute of `vla eval`, beside LeRobot's evaluation of the same scenes and policy.

LeRobot's own `rollout` runs on the vector environments that its `make_env` builds; it records nothing here. Ours
records every episode. The bundled backbone with an untrained action head drives both, and an episode ends after as many
steps as one of a trained policy would (`Ends`): LeRobot's batches end with their longest one.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from vla.common.pip_install import install_command
from vla.common.result_table import Table, Target
from vla.envs import MAX_STEPS
from vla.envs.make import make_env
from vla.errors import InputError
from vla.evaluation.rollouts.result_store import ResultStore
from vla.evaluation.rollouts.trial import Result, Trial
from vla.evaluation.rollouts.workers import Job, run_in_workers
from vla.models.normalization import Normalizer
from vla.models.processor import Processor
from vla.models.robot_spec import RobotSpec
from vla.models.vla import VLA
from vla.policies.load import load_policy

TASK, N_ACTION_STEPS, HORIZON = "pick", 3, 6
ENVS, WORKERS, WAVES, ROUNDS = 8, 2, 3, 3
"""Environments of each, processes of ours, episodes that an environment runs, and how often all is timed."""
WARM_UP = 10**6
"""The first seed of the episodes that only fill our environments."""
SUCCESS, LENGTHS = 0.8, (25, 60)
"""How many episodes end early, and after how many steps those do."""


class Ends(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Ends an episode at a step that its seed draws, as a success; the others take all their steps."""

    task_description = property(lambda self: self.env.task_description)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        rng = np.random.default_rng([seed or 0, 7])
        self._left = int(rng.integers(*LENGTHS)) if rng.random() < SUCCESS else MAX_STEPS[TASK]
        return super().reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        values, reward, terminated, truncated, info = super().step(action)
        self._left -= 1
        return values, reward, terminated or self._left <= 0, truncated, info


def seeds(turn: int) -> range:
    """Those of a round: the same for every contestant, for their episodes differ in length."""
    return range(turn * ENVS * WAVES, (turn + 1) * ENVS * WAVES)


def ours() -> gymnasium.Env[Any, Any]:
    return Ends(make_env(TASK, phrasing="heldout", images=False))


def bench_rollout() -> Table:
    """Median episodes a minute and control steps a second over rounds in which the contestants take turns."""
    try:
        lerobot = import_module("vla.benchmarks.rollout_lerobot").contestant
    except ImportError as error:
        raise InputError(
            f"vla bench rollout needs LeRobot and {install_command('./lerobot_policy_vla')}: {error}"
        ) from error
    with tempfile.TemporaryDirectory() as place, ExitStack() as closing:
        folder = Path(place)
        untrained_policy().save_pretrained(folder / "policy")
        contestants: dict[str, Callable[[int], tuple[float, float, float]]] = {
            "lerobot, SyncVectorEnv": lerobot(folder / "policy", closing, use_async=False),
            "lerobot, AsyncVectorEnv": lerobot(folder / "policy", closing, use_async=True),
            "vla eval": partial(_ours, folder, "asked"),
            "vla eval render=all": partial(_ours, folder, "all"),
        }
        rates: dict[str, list[tuple[float, float]]] = {name: [] for name in contestants}
        for turn in range(ROUNDS):
            for name, contestant in contestants.items():
                episodes, steps, seconds = contestant(turn)
                rates[name].append((60 * episodes / seconds, steps / seconds))
        rows = [
            {
                "what": name,
                "episodes/min": statistics.median(minute for minute, _ in found),
                "steps/s": statistics.median(second for _, second in found),
            }
            for name, found in rates.items()
        ]
    # Within a round, for another job on the machine slows all of a round down.
    others = zip(rates["lerobot, SyncVectorEnv"], rates["lerobot, AsyncVectorEnv"], strict=True)
    ratios = [ours[0] / max(sync[0], apart[0]) for ours, (sync, apart) in zip(rates["vla eval"], others, strict=True)]
    return Table(rows, [Target("episodes a minute, over LeRobot's better one", statistics.median(ratios), 3.0)])


def untrained_policy() -> VLA:
    """The bundled backbone with an action head of random weights."""
    env = make_env(TASK, images=False)
    body = env.unwrapped.embodiment  # type: ignore[attr-defined]
    env.close()
    plain = VLA.load(Path(str(files("vla") / "assets" / "nano")))
    old = plain.processor
    spec = RobotSpec(
        embodiment=body,
        horizon=HORIZON,
        state=Normalizer(body.action_low, body.action_high),
        action=Normalizer((-0.05,) * len(body.action), (0.05,) * len(body.action)),
        statistics_hash="none",
    )
    return VLA(plain.backbone, Processor(old.tokenizer, old.image_size, old.tokens_per_image, (spec,))).eval()


def _ours(folder: Path, frames: str, turn: int) -> tuple[float, float, float]:
    """Episodes, control steps and seconds of the time in which no environment is idle, as in a long evaluation.

    That is from the moment at which as many episodes have ended as there are environments to that at which the last one
    begins. An episode's steps count by the part of its time within; how many episodes they make, by the mean length.
    """
    env = ours()
    body = env.unwrapped.embodiment  # type: ignore[attr-defined]
    env.close()
    load = partial(load_policy, str(folder / "policy"))
    job = Job(ours, load, body, ENVS // WORKERS, N_ACTION_STEPS, every_frame=frames == "all")
    begun: dict[int, float] = {}
    ended: list[tuple[float, Result]] = []

    def trials() -> Iterator[Trial]:
        for seed in (*range(WARM_UP, WARM_UP + ENVS), *seeds(turn)):
            begun[seed] = time.perf_counter()
            yield Trial(seed)

    with ResultStore(folder / f"{frames}-{turn}", {}, body) as ledger:
        for result in run_in_workers(job, trials(), WORKERS, ledger):
            if result.crash:
                raise RuntimeError(result.crash)
            ended.append((time.perf_counter(), result))
    start, stop = ended[ENVS - 1][0], max(begun.values())
    steps = 0.0
    for end, result in ended:
        begin = begun[result.seed]
        steps += result.length * max(0.0, min(end, stop) - max(begin, start)) / (end - begin)
    length = statistics.mean(result.length for _, result in ended if result.seed in seeds(turn))
    return steps / length, steps, stop - start
