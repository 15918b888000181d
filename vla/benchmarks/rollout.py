"""`vla bench rollout`: the speed of `vla eval` compared with LeRobot's evaluation of the same scenes and policy.

LeRobot's `rollout` runs on the vector environments of its `make_env`, without recording; ours records every episode.
Both use the bundled backbone with an untrained action head. Episodes have lengths as with a trained policy (`Ends`),
because LeRobot's batches end with their longest episode.
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
"""The number of environments, of our processes, of episodes per environment, and of rounds."""
WARM_UP = 10**6
"""The first seed of the warm-up episodes."""
SUCCESS, LENGTHS = 0.8, (25, 60)
"""The share of episodes that end early, and the range of their lengths [steps]."""


class Ends(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Ends some episodes successfully at a step that depends on the seed; the others have the maximum length."""

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
    """The seeds of a round, equal for all contestants because they determine the lengths."""
    return range(turn * ENVS * WAVES, (turn + 1) * ENVS * WAVES)


def ours() -> gymnasium.Env[Any, Any]:
    return Ends(make_env(TASK, phrasing="heldout", images=False))


def bench_rollout() -> Table:
    """Measures median episodes per minute and control steps per second over rounds with alternating contestants."""
    try:
        lerobot = import_module("vla.benchmarks.rollout_lerobot").contestant
    except ImportError as error:
        raise InputError(
            f"vla bench rollout needs LeRobot and {install_command('./lerobot_policy_vla')}: {error}"
        ) from error
    with tempfile.TemporaryDirectory() as name, ExitStack() as closing:
        folder = Path(name)
        untrained_policy().save_pretrained(folder / "policy")
        contestants: dict[str, Callable[[int], tuple[float, float, float]]] = {
            "lerobot, SyncVectorEnv": lerobot(folder / "policy", closing, use_async=False),
            "lerobot, AsyncVectorEnv": lerobot(folder / "policy", closing, use_async=True),
            "vla eval": partial(_ours, folder, "on_inference"),
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
    # Ratios within a round, since other load on the machine affects all contestants of a round.
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
    """Episodes, control steps and seconds of the period in which no environment is idle, as in a long evaluation.

    The period begins when as many episodes have ended as there are environments, and ends when the last one starts. The
    steps of an episode count by the share of its time in the period; episodes are steps over the mean length.
    """
    env = ours()
    body = env.unwrapped.embodiment  # type: ignore[attr-defined]
    env.close()
    load = partial(load_policy, str(folder / "policy"))
    job = Job(ours, load, body, ENVS // WORKERS, N_ACTION_STEPS, every_frame=frames == "all")
    start_times: dict[int, float] = {}
    ended: list[tuple[float, Result]] = []

    def trials() -> Iterator[Trial]:
        for seed in (*range(WARM_UP, WARM_UP + ENVS), *seeds(turn)):
            start_times[seed] = time.perf_counter()
            yield Trial(seed)

    with ResultStore(folder / f"{frames}-{turn}", {}, body) as store:
        for result in run_in_workers(job, trials(), WORKERS, store):
            if result.crash:
                raise RuntimeError(result.crash)
            ended.append((time.perf_counter(), result))
    start, stop = ended[ENVS - 1][0], max(start_times.values())
    steps = 0.0
    for end, result in ended:
        begin = start_times[result.seed]
        steps += result.length * max(0.0, min(end, stop) - max(begin, start)) / (end - begin)
    length = statistics.mean(result.length for _, result in ended if result.seed in seeds(turn))
    return steps / length, steps, stop - start
