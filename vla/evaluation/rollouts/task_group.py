"""Evaluation of a group of tasks (`metaworld/mt10`), one task after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vla.common.atomic import write_json
from vla.envs.make import check_task
from vla.errors import InputError
from vla.evaluation.evaluation_options import EvaluationOptions


def evaluate_tasks(
    tasks: Sequence[str], evaluate: Callable[[EvaluationOptions], dict[str, Any]], options: EvaluationOptions
) -> dict[str, Any]:
    """Calls `evaluate` for each task with the folder `out`/TASK; `out`/eval.json has the rates and their mean.

    Raises:
        InputError: as `evaluate`, and for options that are not supported with several tasks; before anything is
            written.
    """
    out = Path(options.out)
    if options.merge:
        raise InputError(f"{options.task} is several tasks: merge folders of one of them")
    if (out / "settings.json").exists():
        raise InputError(f"{out} holds the evaluation of one task: set another folder with out=")
    for task in tasks:
        check_task(task, (*options.axes, *options.axes_report), swap=options.swap)
    found = {t: evaluate(replace(options, task=t, out=str(out / t.rpartition("/")[2]))) for t in tasks}
    rates = {task: report["success_rate"] for task, report in found.items()}
    known = [rate for rate in rates.values() if rate is not None]
    report = {
        "policy": options.policy,
        "task": options.task,
        "success_rate": sum(known) / len(known) if known else None,
        "episodes": sum(report["episodes"] for report in found.values()),
        "by_task": {task: {k: report[k] for k in ("success_rate", "success_ci95", "episodes", "mean_length")}
                    for task, report in found.items()},
    }  # fmt: skip
    write_json(out / "eval.json", report)
    width = max(map(len, tasks))
    print("\n".join(f"{task:{width}}  {'none' if rate is None else f'{rate:.3f}'}" for task, rate in rates.items()))
    return report
