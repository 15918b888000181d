"""`vla eval`: the success rate of a policy in simulation, with its interval."""

from __future__ import annotations

import json
import shlex
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

import gymnasium

from vla.common.atomic import write_json
from vla.common.intervals import decided_after
from vla.common.plural import counted
from vla.control.adapt import adapted_line, load_for_robots
from vla.datasets.vqa import VqaStore
from vla.embodiment import Embodiment
from vla.envs.make import make_env
from vla.envs.so101 import to_observation
from vla.envs.suites.config import tasks_of
from vla.errors import InputError
from vla.evaluation.evaluation_options import MEASURED, EvaluationOptions, parse_seeds
from vla.evaluation.reports.evaluation_report import evaluation_page
from vla.evaluation.rollouts.result_store import ResultStore, check_folder
from vla.evaluation.rollouts.rollout import PolicyFor, progress
from vla.evaluation.rollouts.summary import summarize
from vla.evaluation.rollouts.task_group import evaluate_tasks
from vla.evaluation.rollouts.trial import Key, Result, Trial, trials_for
from vla.evaluation.rollouts.workers import Job, run_in_workers
from vla.policies.history import history_of
from vla.policies.load import SCRIPTED, tasks_of_policy, tasks_trained_on, weights_of_policy
from vla.policies.policy import Policy


def evaluate(options: EvaluationOptions) -> dict[str, Any]:
    """Evaluates a policy in simulation; writes eval.json, report.html and the recorded episodes to a folder.

    Returns:
        The content of eval.json.

    Raises:
        InputError: a name is unknown, the policy is of another embodiment, or the folder contains something else;
            before anything is written.
    """
    tasks = _tasks(options.policy, options.task)
    if len(tasks) > 1:
        return evaluate_tasks(tasks, evaluate, replace(options, task=options.task or ", ".join(tasks)))
    (task,) = tasks
    options.check(task)
    folder, merge = Path(options.out), [Path(str(other)) for other in options.merge]
    delay, stop = options.delay, options.stop
    make = partial(make_env, task, **options.scenes | {"axes": tuple(options.axes)}, holdout=True, images=False)
    load = partial(load_for_robots, options.policy, dict(options.kinematics))
    settings = _settings(options, task)
    _check_folders(folder, merge, settings)
    measured = _saved_delay([folder, *merge], required=MEASURED in delay)
    embodiment, model, measured = _open(make, load, measured, measure_delay=MEASURED in delay)
    settings["measured"] = measured
    if options.vqa is None:
        model = None  # the rollouts load their own
    else:
        if model is None:
            raise InputError(f"{options.policy} answers no questions: remove vqa, or use a checkpoint of vla train")
        VqaStore(options.vqa)
    trials = _trials(options, measured)
    every_frame = options.render == "all"
    job = Job(make, load, embodiment, options.parallel, options.n_action_steps, every_frame, options.safety_filter)
    with ResultStore(folder, settings, embodiment) as store:
        for other in merge:
            store.copy_from(other)
        decided = None if stop is None else lambda: _decided(trials, store.results, stop)
        run(job, trials, options.workers, store, decided)
        results = [store.results[trial.key] for trial in trials if trial.key in store.results]
    report = settings | {"seeds": options.seeds, "swap": options.swap, "stop": stop}
    report |= summarize(results, stop=stop)
    report["vqa"] = None if options.vqa is None else answer(model, options.vqa, options.questions)
    write_json(folder / "eval.json", report | {"results": [asdict(r) for r in results]})
    evaluation_page(folder, report, results)
    print(headline(report, folder))
    return report


def _tasks(policy: str, task: str | None) -> Sequence[str]:
    """The tasks to evaluate on; prints those of None, and where the policy was trained on others."""
    if task is None:
        tasks = tasks_trained_on(policy)
        print(f"task={', '.join(tasks)}: {'the default' if policy in SCRIPTED else f'{policy} was trained on it'}")
        return tasks
    tasks = tasks_of(task)
    if (trained := tasks_of_policy(policy)) and not set(trained) & set(tasks):
        print(f"{policy} was trained on {', '.join(trained)}, and is evaluated on {task}")
    return tasks


def _settings(options: EvaluationOptions, task: str) -> dict[str, Any]:
    """What the trials of a folder have in common."""
    return {
        "policy": options.policy,
        "weights": weights_of_policy(options.policy),
        "task": task,
        **options.scenes,
        "n_action_steps": options.n_action_steps,
        "safety_filter": options.safety_filter,
        "kinematics": {key: value for key, value in options.kinematics.items() if value is not None} or None,
    }


def _check_folders(folder: Path, merge: Sequence[Path], settings: Mapping[str, Any]) -> None:
    """Raises InputError if a folder holds an evaluation with other settings."""
    for path in (folder, *merge):
        check_folder(path, settings)


def _trials(options: EvaluationOptions, measured: float | None) -> list[Trial]:
    """The trials, with the measured delay [s]."""
    delays = [float(measured if d == MEASURED else d) for d in options.delay]  # type: ignore[arg-type]
    return trials_for(
        parse_seeds(options.seeds),
        options.swap,
        axes=options.axes,
        alone=options.axes_report,
        delays=delays,
        executions=options.execution,
    )


def run(
    job: Job, trials: Sequence[Trial], workers: int, store: ResultStore, decided: Callable[[], bool] | None = None
) -> None:
    """Runs the trials that are missing in `store` and stores their results, until `decided` returns True."""
    missing = store.missing(trials)
    missing_keys = {trial.key for trial in missing}
    before = [store.results[trial.key] for trial in trials if trial.key not in missing_keys]
    if not missing:
        print(f"{store.folder} has all {counted(len(trials), 'episode')} already: more seeds= extend it")
    if not missing or (decided and decided()):
        return
    # No more processes than have all their environments in use.
    workers = min(workers, -(-len(missing) // job.parallel))
    results = run_in_workers(job, missing, workers, store)
    for result in progress(results, len(trials), before):
        store.note(result)
        if decided and decided():
            results.close()
            return


def _decided(trials: Sequence[Trial], results: Mapping[Key, Result], rate: float) -> bool:
    """Whether the outcomes of the first trials show that their success rate differs from `rate`.

    Only the leading finished trials count, in trial order, because successful episodes end earlier than others.
    """
    ended = takewhile(lambda result: result is not None, (results.get(trial.key) for trial in trials))
    return decided_after([r.success for r in ended if r is not None and not r.crash], rate) is not None


def _open(
    make: Callable[[], gymnasium.Env[Any, Any]],
    load: Callable[[], PolicyFor],
    measured: float | None,
    *,
    measure_delay: bool,
) -> tuple[Embodiment, Any, float | None]:
    """Checks that the policy fits the environment; returns the embodiment, the policy's model and its delay [s]."""
    env = make()
    try:
        embodiment: Embodiment = env.unwrapped.embodiment  # type: ignore[attr-defined]
        policy = load()(env)
        policy.embodiment.check(embodiment)
        if (line := adapted_line(policy)) is not None:
            print(line)
        if measure_delay and measured is None:
            measured = measure(env, policy)
    finally:
        env.close()
    return embodiment, getattr(policy, "model", None), measured


def measure(env: gymnasium.Env[Any, Any], policy: Policy, times: int = 5) -> float:
    """The median time of a prediction [s], after one for warm-up."""
    values, _ = env.reset(seed=0)
    values = values | {"images": env.unwrapped.capture()}  # type: ignore[attr-defined]
    policy.reset()
    observation = to_observation(values, 0.0)
    # A full history, as in the middle of an episode.
    observation = replace(observation, past=(observation.images,) * len(history_of(policy)))
    durations = []
    for _ in range(times + 1):
        start = time.perf_counter()
        policy.predict(observation)
        durations.append(time.perf_counter() - start)
    return round(statistics.median(durations[1:]), 4)


def answer(model: Any, store: str, questions: int) -> dict[str, float]:
    """Accuracy on up to `questions` held-out questions of each kind."""
    from vla.evaluation.heldout import heldout_by_kind, vqa_accuracy

    return vqa_accuracy(model, heldout_by_kind(VqaStore(store), questions))


def headline(report: Mapping[str, Any], folder: Path) -> str:
    """The lines that the command prints: rates with their intervals, and the path of the report."""
    lines = []
    if report["success_rate"] is not None:
        low, high = report["success_ci95"]
        lines.append(f"success {report['success_rate']:.3f} [{low:.3f}, {high:.3f}] in {report['episodes']} episodes")
    if report["crashed"]:
        lines.append(f"{report['crashed']} crashed, counted as neither: see eval.json")
    if report["stopped_after"]:
        lines.append(f"differs from {report['stop']} after {report['stopped_after']} episodes")
    if report["instruction_swap_success"] is not None:
        lines.append(f"with the instruction swapped: {report['instruction_swap_success']:.3f}")
    for row in report["by_axis"]:
        lines.append(f"{row['axis']}: {_rate(row)}, {row['difference']:+.3f} (p {row['p']:.2g}): {row['verdict']}")
    lines += [f"{row['execution']}, {row['delay']:g} s delay: {_rate(row)}" for row in report["latency"]]
    if report["vqa"]:
        lines.append("questions: " + ", ".join(f"{kind} {value:.2f}" for kind, value in report["vqa"].items()))
    return "\n".join([*lines, f"open {folder / 'report.html'}, or: vla view {shlex.quote(str(folder))}"])


def _rate(row: Mapping[str, Any]) -> str:
    low, high = row["success_ci95"]
    return "none" if row["success_rate"] is None else f"{row['success_rate']:.3f} [{low:.3f}, {high:.3f}]"


def _saved_delay(folders: Sequence[Path], *, required: bool) -> float | None:
    """The delay that was measured for these folders, or None. Raises InputError if it is required and they differ."""
    paths = [folder / "settings.json" for folder in folders]
    saved = [json.loads(path.read_text()).get("measured") if path.exists() else None for path in paths]
    found = list(dict.fromkeys(value for value in saved if value is not None))
    if required and len(found) > 1:
        raise InputError(f"the folders measured other delays ({', '.join(map(str, found))} s): set delay=[SECONDS]")
    return saved[0] if saved[0] is not None or not required else next(iter(found), None)
