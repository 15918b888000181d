"""Summary statistics of an evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from vla.common.intervals import always_valid, decided_after, mcnemar, paired_difference, wilson
from vla.evaluation.rollouts.trial import AVERAGED, Result


def summarize(results: Sequence[Result], *, stop: float | None = None) -> dict[str, Any]:
    """Rates of the group "named" (at its first execution and delay) and of the group "swap".

    Crashed trials are excluded. Values without data are None.

    Args:
        results: The results of the trials.
        stop: If set, outcomes count only up to the first, in the order of `results`, at which their `always_valid`
            interval excludes this rate.
    """
    counted = [r for r in results if not r.crash]
    cells = list(dict.fromkeys((r.execution, r.delay) for r in results if r.group == "named"))
    named = [r for r in counted if r.group == "named" and (r.execution, r.delay) == cells[0]]
    decided = None if stop is None else decided_after([r.success for r in named], stop)
    named = named[:decided]
    others = dict.fromkeys(r.group for r in results if r.group not in ("named", "swap"))
    means = {name: _mean(getattr(r, name) for r in named) for name in ("jerk", "collisions", "limit_hits", "clamped")}
    return {
        **rate(named),
        "success_always_valid95": list(always_valid(sum(r.success for r in named), len(named))),
        "crashed": sum(bool(r.crash) for r in results),
        "stopped_after": decided,
        "wrong_object_rate": _mean(r.wrong_object and not r.success for r in named),
        "instruction_swap_success": _mean(r.success for r in counted if r.group == "swap"),
        "mean_length": _mean(r.length for r in named),
        "seconds_to_success": _mean(r.seconds for r in named if r.success),
        **means,
        "invalid_chunks": sum(r.invalid for r in results),
        "by_axis": [axis_row(axis, named, [r for r in counted if r.group == axis]) for axis in others],
        "latency": _latency([r for r in counted if r.group == "named"], cells) if len(cells) > 1 else [],
    }


def rate(results: Sequence[Result]) -> dict[str, Any]:
    """The number of episodes, the success rate, and its Wilson interval."""
    return {
        "episodes": len(results),
        "success_rate": _mean(r.success for r in results),
        "success_ci95": list(wilson(sum(r.success for r in results), len(results))),
    }


def paired(first: Iterable[Result], second: Iterable[Result]) -> dict[str, Any]:
    """The paired difference of two sets of results on their common seeds: second minus first."""
    ours, theirs = ({r.seed: r.success for r in results} for results in (first, second))
    pairs = [(ours[seed], theirs[seed]) for seed in ours if seed in theirs]
    both, lost, won, neither = (
        pairs.count(kind) for kind in ((True, True), (True, False), (False, True), (False,) * 2)
    )
    p = mcnemar(won, lost)
    return {
        "pairs": len(pairs),
        "won": won,
        "lost": lost,
        "difference": (won - lost) / len(pairs) if pairs else 0.0,
        "difference_ci95": list(paired_difference(both, won, lost, neither)),
        "p": p,
        "verdict": ("better" if won > lost else "worse") if p < 0.05 else "no significant difference",
    }


def axis_row(name: str, nominal: Sequence[Result], results: Sequence[Result]) -> dict[str, Any]:
    """A row of the table of axes: a group compared with the nominal scenes of the same seeds."""
    return {"axis": name, **rate(results), **paired(nominal, results)}


def _latency(named: Sequence[Result], cells: Sequence[tuple[str, float]]) -> list[dict[str, Any]]:
    """The success of each execution and delay; without a delay all executions except `AVERAGED` share one run."""
    rows = []
    equal = [execution for execution in dict.fromkeys(e for e, _ in cells) if execution != AVERAGED]
    for execution, delay in cells:
        success = rate([r for r in named if (r.execution, r.delay) == (execution, delay)])
        for name in equal if delay == 0 and execution != AVERAGED else (execution,):
            rows.append({"execution": name, "delay": delay, **success})
    return sorted(rows, key=lambda row: (row["execution"], row["delay"]))


def _mean(values: Iterable[float]) -> float | None:
    items = list(values)
    return float(np.mean(items)) if items else None
