"""`vla bench heads`: all action heads, trained by `vla train` on the same backbone and demonstrations."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vla.commands.options import bind, compose
from vla.commands.record import record_demonstrations
from vla.common.plots import read_losses
from vla.common.result_table import Table
from vla.common.stored_image import decoded
from vla.datasets.windows import Windows
from vla.envs.make import make_env
from vla.evaluation.rollouts.rollout import rollout
from vla.evaluation.rollouts.summary import summarize
from vla.evaluation.rollouts.trial import trials_for
from vla.models.backbone_inputs import DecoderInput
from vla.policies.vla import VlaPolicy
from vla.training.checkpoint_gate import UNITS
from vla.training.demonstrations import Demonstrations
from vla.training.run import train
from vla.types import Observation

TASK = "pick"
HEADS = ("parallel", "bins", "fast", "text", "l1", "flow", "flow head.knowledge_insulation=true")
SEEDS = 1_000_000
"""The first seed of the evaluation, different from those of the demonstrations."""
N_ACTION_STEPS = 3
TIMED = 20


def bench_heads(
    data: str | None = None,
    heads: Sequence[str] = HEADS,
    episodes: int = 400,
    steps: int = 400,
    batch_size: int = 48,
    evaluations: int = 50,
) -> Table:
    """Measures success, loss, held-out error [rad], and tokens, passes and latency per action chunk, for each head.

    Losses of token heads and of continuous heads are not comparable. Training has the defaults of `vla train`, without
    visual questions.

    Args:
        data: A store of the task pick; None: one is recorded.
        heads: The heads, with options.
        episodes: The number of recorded episodes.
        steps: Training steps.
        batch_size: Rows per step.
        evaluations: Rollouts per head.
    """
    rows = []
    with tempfile.TemporaryDirectory(prefix="vla-bench-") as folder:
        if data is None:
            data = str(Path(folder) / "demos.zarr")
            record_demonstrations(TASK, episodes, data, seed=0, noise=0.03, randomize=True, workers=2)
        for number, head in enumerate(heads):
            run = Path(folder) / str(number)
            plan = {"steps": steps, "batch_size": batch_size, "evaluate_every": steps}
            options = [f"head={head}", "horizon=6", f"data={data}", "mixture.vqa=0", f"out={run}"]
            config = compose("train", [*" ".join(options).split(), *(f"plan.{k}={v}" for k, v in plan.items())])
            start = time.perf_counter()
            outcome = bind(train, config)()
            seconds = time.perf_counter() - start
            assert outcome.best is not None
            policy = VlaPolicy.load(outcome.best)
            losses = [value for _, value in read_losses(run).get("robot", [])]
            rows.append(
                {"head": head.replace(" head.", ", ")}
                | _success(policy, evaluations)
                | {"loss": float(np.mean(losses[-5:])) if losses else float("nan")}
                | {"error rad": _error(outcome.evaluations[-1])}
                | _cost(policy, _observations(data, policy))
                | {"train s": seconds}
            )
    return Table(rows, ())


def _error(evaluation: Mapping[str, float]) -> float:
    """The mean error over the joints [rad]."""
    return float(np.mean([value for name, value in evaluation.items() if name.startswith(UNITS)]))


def _success(policy: VlaPolicy, evaluations: int) -> dict[str, Any]:
    trials = trials_for(range(SEEDS, SEEDS + evaluations), swap=False)
    make = partial(make_env, TASK, phrasing="heldout")
    numbers = summarize(rollout(make, lambda _: policy, trials, parallel=25, n_action_steps=N_ACTION_STEPS))
    low, high = numbers["success_ci95"]
    return {"success": numbers["success_rate"], "low": low, "high": high, "invalid": numbers["invalid_chunks"]}


def _observations(data: str, policy: VlaPolicy) -> list[Observation]:
    demonstrations = Demonstrations.open(data)
    windows = Windows(
        demonstrations.store, 1, episodes=demonstrations.heldout_episodes or demonstrations.train_episodes
    )
    examples = (windows[int(i)] for i in np.linspace(0, len(windows) - 1, TIMED))
    return [Observation(decoded(e.images), e.state, e.prompt, 0.0) for e in examples if e.state is not None]


def _cost(policy: VlaPolicy, observations: Sequence[Observation]) -> dict[str, Any]:
    """Tokens, backbone passes and latency of an action chunk, without its prompt and points."""
    backbone: Any = policy.model.backbone
    counted: list[int] = []
    hidden = backbone.forward

    def counting(inputs: DecoderInput) -> Any:
        counted.append(inputs.length)
        return hidden(inputs)

    prompt_passes = (
        1 + policy.model.processor.robot().point_tokens
    )  # passes before the action: the prompt and each coordinate
    tokens, passes, times = [], [], []
    for observation in observations:
        counted.clear()
        backbone.forward = counting
        try:
            policy.predict(observation)
        finally:
            backbone.forward = hidden
        tokens.append(sum(counted[prompt_passes:]))
        passes.append(len(counted) - prompt_passes)
        start = time.perf_counter()
        policy.predict(observation)
        times.append(time.perf_counter() - start)
    return {"tokens": float(np.mean(tokens)), "passes": float(np.mean(passes)), "ms": 1000 * float(np.median(times))}
