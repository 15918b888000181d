"""`vla compare A B`: compares two evaluations on the same scenes, paired by seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla.common.atomic import write_json
from vla.common.plots import COLORS, legend, png, style
from vla.datasets.source_files import read_json_object, reading_file
from vla.errors import InputError
from vla.evaluation.rollouts.summary import paired, rate
from vla.evaluation.rollouts.trial import AVERAGED, Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SAME = ("task", "phrasing", "axes", "randomize")
"""Settings that must be equal; policies, seeds and `n_action_steps` may differ. Only common seeds are compared."""
MEASURES = ("seconds", "jerk", "collisions", "limit_hits", "clamped")
TrialKey = tuple[str, str, float | str, int]
"""Group, execution mode, delay ([s] or "measured") and seed."""


@dataclass(frozen=True)
class Evaluation:
    """The results of one `vla eval`, without crashed episodes; a measured inference delay is named "measured"."""

    name: str
    settings: Mapping[str, Any]
    results: Mapping[TrialKey, Result]

    @classmethod
    def read(cls, folder: str) -> Evaluation:
        """Reads an evaluation. Raises InputError if `folder` has none, or one that cannot be compared."""
        path = Path(folder) / "eval.json"
        if not path.is_file():
            raise InputError(f"{folder} holds no eval.json: run vla eval out={folder} first")
        report = read_json_object(path)
        if "by_task" in report:
            raise InputError(f"{folder} holds several tasks: compare its subfolders one by one")
        if not {"stopped_after", "measured", "policy", "results", *SAME} <= report.keys():
            raise InputError(f"{path} was written by an older version, or is damaged: run that evaluation again")
        if report["stopped_after"]:
            raise InputError(f"{folder} was stopped early, which biases its rate: finish it with stop=null")
        results: dict[TrialKey, Result] = {}
        with reading_file(path, "the report of an evaluation"):
            listed = [Result(**values) for values in report["results"]]
        for result in listed:
            delay = "measured" if result.delay and result.delay == report["measured"] else result.delay
            # Without a delay all other execution modes are the same.
            execution = result.execution if delay or result.execution == AVERAGED else "naive"
            if not result.crash:
                results[result.group, execution, delay, result.seed] = result
        return cls(folder, report, results)


def compare(*, a: str, b: str, out: str) -> None:
    """Prints the comparison of two evaluations, and writes `out/compare.json` and `out/compare.png`.

    Rates have Wilson's interval, their difference Newcombe's, and p is McNemar's exact p.

    Args:
        a: Folder of the first evaluation.
        b: Folder of the second evaluation.
        out: Output folder.

    Raises:
        InputError: The evaluations are not of the same scenes, or have no trial in common.
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
    """One row for each common group, execution mode and delay; the difference is the second rate minus the first.

    Raises:
        InputError: The evaluations have no trial in common, or their settings or instructions differ.
    """
    if different := [k for k in SAME if first.settings[k] != second.settings[k]]:
        details = "; ".join(f"{k}: {first.settings[k]!r} and {second.settings[k]!r}" for k in different)
        raise InputError(f"{first.name} and {second.name} are not of the same scenes: {details}")
    groups: dict[Any, list[tuple[Result, Result]]] = {}
    for key, result in first.results.items():
        if (other := second.results.get(key)) is not None:
            groups.setdefault(key[:3], []).append((result, other))
            if result.instruction != other.instruction:
                details = f"{result.instruction!r} and {other.instruction!r}"
                raise InputError(f"seed {result.seed} is a different scene in each: {details}")
    if not groups:
        raise InputError(f"{first.name} and {second.name} have no seed in common: evaluate both on the same seeds=")
    return [_row(*key, *zip(*pairs, strict=True)) for key, pairs in groups.items()]


def _row(group: str, execution: str, delay: float | str, a: Sequence[Result], b: Sequence[Result]) -> dict[str, Any]:
    row: dict[str, Any] = {"group": group, "execution": execution, "delay": delay, **paired(a, b)}
    for name, results in (("a", a), ("b", b)):
        means = {m: sum(getattr(r, m) for r in results) / len(results) for m in MEASURES}
        wrong = sum(r.wrong_object and not r.success for r in results) / len(results)
        row[name] = rate(results) | {"wrong_object_rate": wrong, "delay": results[0].delay, **means}
    return row


def _name(row: Mapping[str, Any]) -> str:
    delays = dict.fromkeys((row["a"]["delay"], row["b"]["delay"]))
    labels = [f"{row['execution']} {delay:g} s" for delay in delays if delay]
    if not labels and row["execution"] == AVERAGED:
        labels = [AVERAGED]
    return ", ".join((row["group"], *labels))


def _line(row: Mapping[str, Any]) -> str:
    def rate_text(name: str) -> str:
        low, high = row[name]["success_ci95"]
        return f"{row[name]['success_rate']:.3f} [{low:.3f}, {high:.3f}]"

    low, high = row["difference_ci95"]
    verdict = {"better": "b is better", "worse": "a is better"}.get(row["verdict"], row["verdict"])
    return (
        f"{_name(row)}: a {rate_text('a')}, b {rate_text('b')}, "
        f"b - a {row['difference']:+.3f} [{low:+.3f}, {high:+.3f}], "
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
    axes.set_ylim(-0.5, len(rows) - 0.5)
    style(axes, "success, 95 % interval", "%")
    legend(axes)
