"""`vla eval`: the success rate of a policy in simulation, with its interval."""

from __future__ import annotations

import json
import re
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium

from vla.envs.instructions import check_phrasing
from vla.envs.make import check_task, make_env
from vla.envs.so101 import to_observation
from vla.envs.suites.config import tasks_of
from vla.errors import InputError
from vla.evaluation.each import evaluate_each
from vla.evaluation.intervals import decided_after
from vla.evaluation.ledger import Ledger, check_folder
from vla.evaluation.page import evaluation_page
from vla.evaluation.rollout import progress
from vla.evaluation.summary import summarize, write_json
from vla.evaluation.trial import EXECUTIONS, Key, Result, Trial, trials_for
from vla.evaluation.workers import Job, run_in_workers
from vla.policies.load import load_policy
from vla.policies.protocol import Policy

MEASURED = "measured"
CHOICES = {"frames": ("asked", "all"), "crashes": ("apart", "failures")}


def evaluate(
    *,
    policy: str,
    task: str,
    seeds: str,
    phrasing: str,
    axes: Sequence[str],
    axes_report: Sequence[str],
    swap: bool,
    delay: Sequence[float | str],
    execution: Sequence[str],
    out: str,
    randomize: bool,
    parallel: int,
    workers: int,
    execute: int,
    frames: str,
    crashes: str,
    stop: float | None,
    vqa: str | None,
    questions: int,
    merge: Sequence[str],
) -> dict[str, Any]:
    """Rolls `policy` out on each of `seeds`, into `out`: eval.json, report.html, and what `ledger` lists.

    Scenes are drawn as those of the demonstrations are, but for `axes` (`vla.envs.axes`): what differs from them. Each
    axis of `axes_report` alone is a group beside that. With `swap` each seed is run a second time, its instruction
    naming another object of the scene. Each `execution` meets each `delay` [s] (`vla.evaluation.slot`); "measured" is
    the median time of one prediction, here and now. `merge` takes over the trials of other folders. A group of tasks is
    evaluated as `evaluate_each` says. Returns what eval.json has. Raises InputError, before anything is written, when a
    name is unknown, the policy is of another embodiment, or `out` holds something else.
    """
    options = dict(locals())
    if len(tasks := tasks_of(task)) > 1:
        return evaluate_each(tasks, evaluate, **options)
    folder = Path(out)
    check_phrasing(phrasing)
    check_task(task, (*axes, *axes_report), swap=swap)
    _check_names(frames=frames, crashes=crashes, execution=execution, delay=delay)
    _check_numbers(parallel, workers, execute, stop, alone=not (swap or axes_report or len(delay) * len(execution) > 1))
    make = partial(
        make_env, task, randomize=randomize, phrasing=phrasing, axes=tuple(axes), holdout=True, images=False
    )  # fmt: skip
    load = partial(load_policy, policy)
    settings: dict[str, Any] = {
        "policy": policy,
        "weights": _weights(policy),
        "task": task,
        "phrasing": phrasing,
        "axes": list(axes),
        "randomize": randomize,
        "execute": execute,
        "measured": _saved(folder).get("measured"),
    }
    check_folder(folder, settings)
    for other in merge:
        if not _saved(Path(other)):
            raise InputError(f"merge takes folders of vla eval: {other} holds no evaluation")
        check_folder(Path(other), settings)
    env = make()
    try:
        embodiment = env.unwrapped.embodiment  # type: ignore[attr-defined]
        driver = load()(env)
        driver.embodiment.check(embodiment)
        if MEASURED in delay and settings["measured"] is None:
            settings["measured"] = measure(env, driver)
    finally:
        env.close()
    model = getattr(driver, "model", None)
    if vqa is not None and model is None:
        raise InputError(f"{policy} answers no questions: leave vqa out, or give a checkpoint of vla train")
    delays = [float(settings["measured"] if d == MEASURED else d) for d in delay]
    trials = trials_for(
        parse_seeds(seeds), swap, axes=axes, alone=axes_report, delays=delays, executions=execution
    )  # fmt: skip
    job = Job(make, load, embodiment, parallel, execute, every_frame=frames == "all")
    with Ledger(folder, settings, embodiment) as ledger:
        for other in merge:
            ledger.copy_from(Path(other))
        fail = crashes == "failures"
        run(
            job, trials, workers, ledger, None if stop is None else lambda: _decided(trials, ledger.results, stop, fail)
        )
        results = [ledger.results[trial.key] for trial in trials if trial.key in ledger.results]
    report = settings | {"seeds": seeds, "swap": swap, "stop": stop, "crashes": crashes}
    report |= summarize(results, crashes_fail=fail, stop=stop)
    report["vqa"] = None if vqa is None else answer(model, vqa, questions)
    write_json(folder / "eval.json", report | {"results": [asdict(r) for r in results]})
    evaluation_page(folder, report, results)
    print(headline(report, folder))
    return report


def run(
    job: Job, trials: Sequence[Trial], workers: int, ledger: Ledger, decided: Callable[[], bool] | None = None
) -> None:
    """Runs what `ledger` lacks of the trials, and notes it there, until all is done or `decided`."""
    missing = ledger.missing(trials)
    lacking = {trial.key for trial in missing}
    before = [ledger.results[trial.key] for trial in trials if trial.key not in lacking]
    if not missing or (decided and decided()):
        return
    # A process that does not fill its environments would not earn the time it takes to start.
    workers = min(workers, -(-len(missing) // job.parallel))
    found = run_in_workers(job, missing, workers, ledger)
    for result in progress(found, len(trials), before):
        ledger.note(result)
        if decided and decided():
            found.close()
            return


def _decided(trials: Sequence[Trial], results: Mapping[Key, Result], rate: float, crashes_fail: bool) -> bool:
    """Whether the outcomes of the first trials, as far as all of those are done, tell their rate from `rate`.

    In the order of the trials, for those that end first are the successes.
    """
    outcomes = []
    for trial in trials:
        result = results.get(trial.key)
        if result is None:
            break
        if crashes_fail or not result.crash:
            outcomes.append(result.success)
    return decided_after(outcomes, rate) is not None


def measure(env: gymnasium.Env[Any, Any], policy: Policy, times: int = 5) -> float:
    """The median time of one prediction [s], after a first one that does not count."""
    values, _ = env.reset(seed=0)
    values = values | {"images": env.unwrapped.capture()}  # type: ignore[attr-defined]
    policy.reset()
    taken = []
    for _ in range(times + 1):
        start = time.perf_counter()
        policy.predict(to_observation(values, 0.0))
        taken.append(time.perf_counter() - start)
    return round(statistics.median(taken[1:]), 4)


def answer(model: Any, store: str, questions: int) -> dict[str, float]:
    """Accuracy on up to so many held-out questions of each kind."""
    from vla.datasets.vqa import VqaStore
    from vla.training.heldout import vqa_accuracy
    from vla.training.run import heldout_by_kind

    return vqa_accuracy(model, heldout_by_kind(VqaStore(store), questions))


def headline(report: Mapping[str, Any], folder: Path) -> str:
    lines = []
    if report["success_rate"] is not None:
        low, high = report["success_ci95"]
        lines.append(f"success {report['success_rate']:.3f} [{low:.3f}, {high:.3f}] in {report['episodes']} episodes")
    if report["crashed"]:
        counted = "counted as failures" if report["crashes"] == "failures" else "counted as neither"
        lines.append(f"{report['crashed']} crashed, {counted}: see eval.json")
    if report["stopped_after"]:
        lines.append(f"told from {report['stop']} after {report['stopped_after']} episodes")
    if report["instruction_swap_success"] is not None:
        lines.append(f"with the instruction swapped: {report['instruction_swap_success']:.3f}")
    for row in report["by_axis"]:
        lines.append(f"{row['axis']}: {_rate(row)}, {row['difference']:+.3f} (p {row['p']:.2g}): {row['verdict']}")
    lines += [f"{row['execution']}, {row['delay']:g} s late: {_rate(row)}" for row in report["latency"]]
    if report["vqa"]:
        lines.append("questions: " + ", ".join(f"{kind} {value:.2f}" for kind, value in report["vqa"].items()))
    return "\n".join([*lines, f"open {folder / 'report.html'}, or: vla view {folder}"])


def _rate(row: Mapping[str, Any]) -> str:
    low, high = row["success_ci95"]
    return "none" if row["success_rate"] is None else f"{row['success_rate']:.3f} [{low:.3f}, {high:.3f}]"


def parse_seeds(text: str) -> range:
    """ "1000:1060" is 1000 … 1059. Raises InputError for anything else, and for no seed at all."""
    match = re.fullmatch(r"(\d+):(\d+)", str(text).strip())
    seeds = range(int(match[1]), int(match[2])) if match else range(0)
    if not seeds:
        raise InputError(f"seeds must be FIRST:END with END beyond FIRST, such as 1000:1060, not {text!r}")
    return seeds


def _check_names(*, execution: Sequence[str], delay: Sequence[float | str], **chosen: str) -> None:
    for name, value in chosen.items():
        if value not in CHOICES[name]:
            raise InputError(f"{name} is one of {', '.join(CHOICES[name])}, not {value!r}")
    if not execution or set(execution) - set(EXECUTIONS):
        raise InputError(f"execution is a list of {', '.join(EXECUTIONS)}, not {list(execution)}")
    bad = [d for d in delay if d != MEASURED and (isinstance(d, str) or d < 0)]
    if not delay or bad:
        raise InputError(f"delay is a list of seconds, or of {MEASURED}, not {list(delay)}")


def _check_numbers(parallel: int, workers: int, execute: int, stop: float | None, *, alone: bool) -> None:
    if min(parallel, workers, execute) < 1:
        raise InputError(f"parallel, workers and execute must be at least 1, not {parallel}, {workers} and {execute}")
    if stop is not None and not (alone and 0 < stop < 1):
        raise InputError(
            "stop is a rate between 0 and 1, and looks at one rate: leave out swap, axes_report and delays"
        )


def _saved(folder: Path) -> dict[str, Any]:
    path = folder / "settings.json"
    return dict(json.loads(path.read_text())) if path.exists() else {}


def _weights(policy: str) -> str | None:
    """What changes when the weights in a checkpoint's folder do: a resumed evaluation is of one policy."""
    folder = Path(policy) / "best" if (Path(policy) / "best").exists() else Path(policy)
    path = folder / "model.safetensors"
    return f"{path.stat().st_size} {path.stat().st_mtime_ns}" if path.is_file() else None
