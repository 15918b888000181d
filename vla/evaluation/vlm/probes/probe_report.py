"""The report page of probes: scores, also with blank images, curves, and the worst answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla.common.html_page import write_page
from vla.common.plots import COLORS, GREY, style, svg
from vla.evaluation.vlm.probes.counting import points
from vla.evaluation.vlm.probes.detail import TASKS
from vla.evaluation.vlm.probes.probe import ProbeResult
from vla.evaluation.vlm.vqa import Case

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TEXT = 160
"""The maximum number of characters of a displayed answer."""
CURVES = {"number": "exact, by true count", **{task: f"correct, by {task}" for task in TASKS}}
"""The kinds of categories that are levels, with the titles of their curves."""


def write_probe_page(file: Path, policy: str, found: Mapping[str, ProbeResult]) -> Path:
    """Writes the page. Raises InputError if it cannot be written."""
    probes = [
        (name, _rows(result), _plots(result), [_case(case) for case in result.worst]) for name, result in found.items()
    ]
    return write_page(file, f"{policy}: probes", "probes.html", policy=policy, probes=probes)


def _rows(found: ProbeResult) -> list[tuple[str, str, str, str]]:
    """Each score with its value, its interval and its value with blank images."""
    return [
        (
            label,
            f"{score['value']:.3f}",
            f"{score['ci95'][0]:.3f} – {score['ci95'][1]:.3f}",
            f"{found.blank[label]:.3f}" if label in found.blank else "–",
        )
        for label, score in found.report["scores"].items()
    ]


def _plots(found: ProbeResult) -> list[str]:
    """A curve for each kind of levels, and bars for each other kind of categories."""
    kinds: dict[str, list[tuple[str, float]]] = {}
    for row in found.report["categories"]:
        kinds.setdefault(row["kind"], []).append((row["name"].strip(), row[found.main[0]]))
    plots = []
    for kind, rows in kinds.items():
        if kind == "task":  # the levels of each task have a curve
            continue
        if kind in CURVES:
            rows = sorted(rows, key=lambda row: float(row[0]))
            paint = partial(_curve, rows=rows, title=CURVES[kind], score=found.report["scores"].get(kind))
        else:
            paint = partial(_bars, rows=rows, title=f"{found.main[0]}, by {kind}")
        plots.append(svg((3.8, 2.5), paint))
    return plots


def _curve(axes: Axes, rows: Sequence[tuple[str, float]], title: str, score: Mapping[str, Any] | None) -> None:
    x = [float(name) for name, _ in rows]
    axes.plot(x, [value for _, value in rows], "o-", color=COLORS[0])
    if score is not None:  # a threshold, on a logarithmic scale
        axes.set_xscale("log", base=2)
        axes.axvline(score["value"], color=COLORS[1], linestyle="--")
        axes.axvspan(*score["ci95"], color=COLORS[1], alpha=0.15, linewidth=0)
        axes.set_xticks(x, [name for name, _ in rows])
    axes.set_ylim(-0.03, 1.03)
    style(axes, title, "")


def _bars(axes: Axes, rows: Sequence[tuple[str, float]], title: str) -> None:
    axes.barh([name for name, _ in rows], [value for _, value in rows], color=COLORS[0], height=0.6)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.axvline(0.5, color=GREY, linewidth=0.6)
    style(axes, title, "")


def _case(case: Case) -> Case:
    """The case with text as it is displayed."""
    prediction = case.prediction[:TEXT] or "(nothing)"
    if case.answer.endswith("points"):
        prediction += f" ({len(points(case.prediction))} points)"
    return replace(case, prediction=prediction, answer=case.answer[:TEXT])
