"""`vla compare A B`: two evaluations on the same scenes, paired by seed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla.errors import InputError
from vla.evaluation.intervals import wilson
from vla.evaluation.plots import COLORS, png, style
from vla.evaluation.summary import paired, write_json
from vla.evaluation.trial import Key, Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SAME = ("task", "phrasing", "axes", "randomize", "crashes")
"""What both must have in common; policies, seeds and `execute` may differ: only the seeds of both are compared."""
MEASURES = ("seconds", "jerk", "collisions", "limit_hits")


@dataclass(frozen=True)
class Evaluation:
    """One folder of `vla eval`."""

    name: str
    settings: Mapping[str, Any]
    results: Mapping[Key, Result]

    @classmethod
    def read(cls, folder: str) -> Evaluation:
        """Raises InputError when `folder` holds no evaluation, or one of an older version."""
        path = Path(folder) / "eval.json"
        if not path.is_file():
            raise InputError(f"{folder} holds no eval.json: run vla eval out={folder} first")
        report = json.loads(path.read_text())
        if "crashes" not in report:
            raise InputError(f"{path} was written by an older version: run that evaluation again")
        results = [Result(**result) for result in report["results"]]
        counted = [r for r in results if report["crashes"] == "failures" or not r.crash]
        return cls(folder, report, {result.key: result for result in counted})


def compare(*, a: str, b: str, out: str) -> None:
    """Prints how `b` does against `a` in each group, and writes `out/compare.json` and `out/compare.png`.

    Both rates have Wilson's interval, the difference Newcombe's, and p is McNemar's, exact. Raises InputError when the
    evaluations are not of the same scenes, or share no trial.
    """
    first, second = Evaluation.read(a), Evaluation.read(b)
    rows = table(first, second)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "compare.json", {"a": a, "b": b, "rows": rows})
    png(folder / "compare.png", (6.0, 1.2 + 0.45 * len(rows)), lambda axes: _paint(axes, rows))
    print(f"a: {first.settings['policy']} ({a})\nb: {second.settings['policy']} ({b})")
    print("\n".join(map(_line, rows)))


def table(first: Evaluation, second: Evaluation) -> list[dict[str, Any]]:
    """A row for each group, execution and delay that both have; the difference is the second's rate minus the first's.

    Raises InputError when there is none, or settings or instructions differ.
    """
    if different := [k for k in SAME if first.settings[k] != second.settings[k]]:
        said = "; ".join(f"{k}: {first.settings[k]!r} and {second.settings[k]!r}" for k in different)
        raise InputError(f"{first.name} and {second.name} are not of the same scenes: {said}")
    shared = [key for key in first.results if key in second.results]
    if not shared:
        raise InputError(f"{first.name} and {second.name} have no seed in common: evaluate both on the same seeds=")
    for key in shared:
        if (said_a := first.results[key].instruction) != (said_b := second.results[key].instruction):
            both = first.results[key].crash or second.results[key].crash
            if not both:
                raise InputError(f"seed {key[3]} is another scene in each: {said_a!r} and {said_b!r}")
    groups = dict.fromkeys(key[:3] for key in shared)
    return [_row(first, second, [key for key in shared if key[:3] == group]) for group in groups]


def _row(first: Evaluation, second: Evaluation, keys: Sequence[Key]) -> dict[str, Any]:
    group, execution, delay, _ = keys[0]
    ours, theirs = ([e.results[key] for key in keys] for e in (first, second))
    row: dict[str, Any] = {"group": group, "execution": execution, "delay": delay, **paired(ours, theirs)}
    for name, results in (("a", ours), ("b", theirs)):
        successes = sum(r.success for r in results)
        ended = [r for r in results if not r.crash]
        row[name] = {
            "success_rate": successes / len(results),
            "success_ci95": list(wilson(successes, len(results))),
            "wrong_object_rate": sum(r.wrong_object for r in results) / len(results),
            **{m: sum(getattr(r, m) for r in ended) / max(len(ended), 1) for m in MEASURES},
        }
    return row


def _name(row: Mapping[str, Any]) -> str:
    return row["group"] + (f", {row['execution']} {row['delay']:g} s" if row["delay"] else "")


def _line(row: Mapping[str, Any]) -> str:
    def rate(name: str) -> str:
        low, high = row[name]["success_ci95"]
        return f"{row[name]['success_rate']:.3f} [{low:.3f}, {high:.3f}]"

    low, high = row["difference_ci95"]
    verdict = {"better": "b is better", "worse": "a is better"}.get(row["verdict"], row["verdict"])
    return (
        f"{_name(row)}: a {rate('a')}, b {rate('b')}, b - a {row['difference']:+.3f} [{low:+.3f}, {high:+.3f}], "
        f"p {row['p']:.2g} in {row['pairs']} pairs (b alone {row['won']}, a alone {row['lost']}): {verdict}"
    )


def _paint(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    for height, row in enumerate(reversed(rows)):
        for name, color, shift in (("a", COLORS[0], 0.12), ("b", COLORS[1], -0.12)):
            low, high = row[name]["success_ci95"]
            y = height + shift
            axes.plot((100 * low, 100 * high), (y, y), color=color, linewidth=2, alpha=0.5)
            label = name if height == 0 else None
            axes.plot(100 * row[name]["success_rate"], y, "o", color=color, label=label)
    axes.set_yticks(range(len(rows)), [_name(row) for row in reversed(rows)])
    axes.set_xlim(-2, 102)
    axes.legend(frameon=False, fontsize=9)
    style(axes, "success, 95 % interval", "%")
