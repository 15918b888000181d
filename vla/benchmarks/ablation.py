"""`vla bench ablation`: the effect of robot fine-tuning recipes on the abilities of the backbone."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

from scipy.stats import t as student

from vla.commands.options import bind, compose
from vla.commands.record import record_demonstrations
from vla.commands.record_scenes import record_scenes
from vla.common.atomic import write_json
from vla.common.device import accelerator
from vla.common.result_table import Table
from vla.datasets.vqa import VqaStore
from vla.envs.make import make_env
from vla.evaluation.heldout import heldout_by_kind, vqa_accuracy
from vla.evaluation.rollouts.rollout import rollout
from vla.evaluation.rollouts.summary import summarize
from vla.evaluation.rollouts.trial import trials_for
from vla.evaluation.vlm.answerer import BackboneAnswerer
from vla.evaluation.vlm.probes.registry import select_probes
from vla.models.vla import VLA
from vla.policies.vla import VlaPolicy
from vla.training.run import train

TASK, HEAD = "pick", "head=flow"
RECIPES: Mapping[str, Sequence[str]] = {
    "robot only": ("mixture.vqa=0",),
    "co-trained": (),
    "frozen backbone": ("mixture.vqa=0", "plan.freeze=[vision,connector,language]"),
    "knowledge insulation": ("head.knowledge_insulation=true",),
}
"""The options of `vla train` that differ; all train the flow head on nano, with questions by default."""
SEEDS = (0, 1, 2)
EVALUATION_SEEDS = 1_000_000
"""The first seed of the rollouts, different from those of the demonstrations."""
N_ACTION_STEPS = 3


def bench_ablation(
    out: str = "outputs/ablation",
    seeds: Sequence[int] = SEEDS,
    episodes: int = 400,
    scenes: int = 1500,
    steps: int = 300,
    batch_size: int = 32,
    evaluations: int = 30,
    questions: int = 100,
    probes: int = 100,
) -> Table:
    """Compares the recipes, and the backbone before fine-tuning.

    The table has success, success with swapped instructions, accuracy on held-out questions and the main score of each
    probe: means over training seeds, with the half width of their 95 % interval (Student's t). An interrupted benchmark
    continues in the folder `out`.

    Args:
        out: The output folder.
        seeds: The training seeds.
        episodes: The number of demonstrations.
        scenes: The number of scenes with questions.
        steps: Training steps.
        batch_size: Rows per step.
        evaluations: Rollouts per model.
        questions: Held-out questions of each kind.
        probes: Scenes per probe.
    """
    folder = Path(out)
    record_demonstrations(TASK, episodes, str(folder / "demos.zarr"), seed=0, noise=0.03, randomize=True, workers=2)
    record_scenes(str(folder / "scenes.zarr"), scenes, 0, True, 2)
    measure = partial(_measure, folder=folder, evaluations=evaluations, questions=questions, probes=probes)
    plan = {"steps": steps, "batch_size": batch_size, "evaluate_every": steps}
    before = _cached(folder / "before.json", lambda: measure(VLA.load(Path(str(files("vla") / "assets" / "nano")))))
    rows = [{"recipe": "before"} | _spread([before])]
    for recipe, options in RECIPES.items():
        found = []
        for seed in seeds:
            run = folder / f"{recipe.replace(' ', '-')}-{seed}"
            common = [HEAD, f"data={folder / 'demos.zarr'}", f"vqa.vqa={folder / 'scenes.zarr'}", f"out={run}"]
            arguments = [*common, *options, f"plan.seed={seed}", *(f"plan.{k}={v}" for k, v in plan.items())]
            train_and_measure = partial(_train, arguments, measure)
            found.append(_cached(run / "measured.json", train_and_measure))
        rows.append({"recipe": recipe} | _spread(found))
    columns = list(dict.fromkeys(column for row in rows for column in row))
    return Table([{column: row.get(column, "") for column in columns} for row in rows], ())


def _train(options: Sequence[str], measure: Any) -> dict[str, float]:
    outcome = bind(train, compose("train", list(options)))()
    if not outcome.finished:
        raise SystemExit(0)  # SIGTERM: the next start resumes from the checkpoint
    return dict(measure(VLA.load(outcome.best)))


def _cached(path: Path, measure: Any) -> dict[str, float]:
    if not path.exists():
        write_json(path, measure())
    return dict(json.loads(path.read_text()))


def _measure(model: VLA, *, folder: Path, evaluations: int, questions: int, probes: int) -> dict[str, float]:
    """All figures of a model; a backbone without an action head has no rollouts."""
    model.to(accelerator())
    numbers: dict[str, float] = {}
    if model.processor.robots:
        policy = VlaPolicy(model)
        trials = trials_for(range(EVALUATION_SEEDS, EVALUATION_SEEDS + evaluations), swap=True)
        make = partial(make_env, TASK, phrasing="heldout")
        found = summarize(rollout(make, lambda _: policy, trials, parallel=25, n_action_steps=N_ACTION_STEPS))
        numbers = {"success": found["success_rate"], "swap": found["instruction_swap_success"]}
    answers = vqa_accuracy(model, heldout_by_kind(VqaStore(folder / "scenes.zarr"), questions))
    numbers["VQA"] = statistics.mean(answers.values())
    answerer = BackboneAnswerer(model)
    for name, probe in select_probes(None, answerer).items():
        numbers[name] = next(iter(probe(answerer, probes, 0, baseline=False).report["scores"].values()))["value"]
    return numbers


def _spread(found: Sequence[Mapping[str, float]]) -> dict[str, str]:
    """The mean of each figure, with the half width of its interval if there are several values."""
    cells = {}
    for name in found[0]:
        values = [one[name] for one in found]
        cells[name] = f"{statistics.mean(values):.2f}"
        if len(values) > 1:
            half = student.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
            cells[name] += f" ±{half:.2f}"
    return cells
