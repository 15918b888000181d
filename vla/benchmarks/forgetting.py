"""`vla bench forgetting`: what a policy of one task forgets when it learns another one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from vla.commands.options import bind, compose
from vla.commands.record import record_demonstrations
from vla.common.atomic import write_json
from vla.common.device import accelerator
from vla.common.intervals import mcnemar, paired_difference, wilson
from vla.common.result_table import Table
from vla.envs.make import make_env
from vla.evaluation.rollouts.rollout import rollout
from vla.evaluation.rollouts.trial import trials_for
from vla.models.vla import VLA
from vla.policies.vla import VlaPolicy
from vla.training.run import train

OLD, NEW = "pick", "place"
PLAIN = f"{NEW} only"
VARIANTS: Mapping[str, Sequence[str]] = {
    PLAIN: (),
    "replay=0.2": ("replay=0.2",),
    "stage=lora": ("stage=lora",),
}
"""The options of `vla train` with which the second task is learned."""
RECIPE = ("mixture.vqa=0", "horizon=6", "plan.lr=1e-3", "plan.warmup=50", "plan.ema=0.995")
"""Options of `vla train` for all policies, as in `vla demo`."""
SEEDS = (0, 1, 2)
EVALUATION_SEEDS = 1_000_000
"""The first seed of the rollouts, different from those of the demonstrations."""
N_ACTION_STEPS, PARALLEL = 3, 25

Outcomes = dict[str, list[bool]]
"""By task, whether each rollout succeeded."""


def bench_forgetting(
    out: str = "outputs/forgetting",
    seeds: Sequence[int] = SEEDS,
    episodes: int = 400,
    steps: int = 900,
    new_steps: int = 450,
    batch_size: int = 32,
    evaluations: int = 40,
) -> Table:
    """Trains policies on `pick`, then on `place` in each variant, and measures the success on both.

    The variants of a seed start from the same policy, and all are evaluated on the same scenes. The table has the
    success over all seeds and scenes with Wilson's interval, and of each variant the difference from training without
    replay, paired by seed and scene, with Newcombe's interval and McNemar's p. The intervals are over scenes, not over
    trainings. An interrupted benchmark continues in the folder `out`.

    Args:
        out: The output folder.
        seeds: The training seeds.
        episodes: Demonstrations of each task.
        steps: Training steps on the first task.
        new_steps: Training steps on the second task.
        batch_size: Rows per step.
        evaluations: Rollouts per policy and task.
    """
    folder = Path(out)
    for task in (OLD, NEW):
        record_demonstrations(
            task, episodes, str(folder / f"{task}.zarr"), seed=0, noise=0.03, randomize=True, workers=2
        )
    names = (f"{OLD} only, before", *VARIANTS)
    found: dict[str, Outcomes] = {name: {OLD: [], NEW: []} for name in names}
    for seed in seeds:
        common = [*RECIPE, f"plan.seed={seed}", f"plan.batch_size={batch_size}"]
        first = folder / f"{OLD}-{seed}"
        start = [f"data={folder / f'{OLD}.zarr'}", f"plan.steps={steps}", f"plan.evaluate_every={steps}"]
        runs = {names[0]: (first, start)}
        for name, options in VARIANTS.items():
            data = [f"data={folder / f'{NEW}.zarr'}", f"backbone={first}", f"plan.steps={new_steps}"]
            runs[name] = folder / f"{_slug(name)}-{seed}", [*data, f"plan.evaluate_every={new_steps}", *options]
        for name, (run, options) in runs.items():
            outcomes = _outcomes(run, [*common, *options, f"out={run}"], evaluations)
            for task, successes in outcomes.items():
                found[name][task] += successes
    return Table([_row(name, outcomes, found[PLAIN]) for name, outcomes in found.items()], ())


def _outcomes(run: Path, options: Sequence[str], evaluations: int) -> Outcomes:
    path = run / "outcomes.json"
    if not path.exists():
        outcome = bind(train, compose("train", list(options)))()
        if not outcome.finished:
            raise SystemExit(0)  # SIGTERM: the next start resumes from the checkpoint
        write_json(path, _measure(VLA.load(outcome.best), evaluations))
    outcomes: Outcomes = json.loads(path.read_text())
    return outcomes


def _measure(model: VLA, evaluations: int) -> Outcomes:
    model.to(accelerator())
    policy, trials = VlaPolicy(model), trials_for(range(EVALUATION_SEEDS, EVALUATION_SEEDS + evaluations), swap=False)
    outcomes: Outcomes = {}
    for task in (OLD, NEW):
        make = partial(make_env, task, phrasing="heldout")
        results = rollout(make, lambda _: policy, trials, parallel=PARALLEL, n_action_steps=N_ACTION_STEPS)
        outcomes[task] = [result.success for result in results]
    return outcomes


def _row(name: str, outcomes: Outcomes, plain: Outcomes) -> dict[str, Any]:
    row: dict[str, Any] = {"training": name}
    for task, successes in outcomes.items():
        low, high = wilson(sum(successes), len(successes))
        row |= {task: sum(successes) / len(successes), f"{task} low": low, f"{task} high": high}
    for task, successes in outcomes.items():
        pairs = list(zip(successes, plain[task], strict=True))
        both, first, second, neither = (
            pairs.count(p) for p in ((True, True), (True, False), (False, True), (False, False))
        )
        low, high = paired_difference(both, first, second, neither)
        difference = {"difference": (first - second) / len(pairs), "from": low, "to": high, "p": mcnemar(first, second)}
        row |= {f"{task} {key}": value for key, value in difference.items()}
    return row | {"rollouts": len(outcomes[OLD])}


def _slug(name: str) -> str:
    return name.replace(" ", "-").replace("=", "-")
