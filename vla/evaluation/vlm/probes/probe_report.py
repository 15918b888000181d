"""The report page of probes: scores, also with blank images, curves, and the worst answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla.common.html_page import html_table, image_uri, section, write_page
from vla.common.plots import COLORS, GREY, style, svg
from vla.evaluation.vlm.probes.counting import points
from vla.evaluation.vlm.probes.detail import TASKS
from vla.evaluation.vlm.probes.probe import Case, ProbeResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TEXT = 160
"""The maximum number of characters of a displayed answer."""
CURVES = {"number": "exact, by true count", **{task: f"correct, by {task}" for task in TASKS}}
"""The kinds of categories that are levels, with the titles of their curves."""


def write_probe_page(file: Path, policy: str, found: Mapping[str, ProbeResult]) -> Path:
    """Writes the page. Raises InputError if it cannot be written."""
    head = (
        f'<h1>Probes</h1>\n<p class="lead">{escape(policy)}</p>\n<p class="soft">Intervals are 95\N{NO-BREAK SPACE}% '
    )
    head += "bootstraps over scenes; blank: the same questions with blank images.</p>"
    return write_page(file, f"{policy}: probes", [head, *(_probe(name, result) for name, result in found.items())])


def _probe(name: str, found: ProbeResult) -> str:
    rows = [
        (label, f"{score['value']:.3f}", f"{score['ci95'][0]:.3f} – {score['ci95'][1]:.3f}", _blank(found, label))
        for label, score in found.report["scores"].items()
    ]
    table = html_table(("score", "value", "95 % interval", "blank"), rows)
    cases = "".join(map(_case, found.worst))
    body = table + _plots(found) + (f'<h3>Worst</h3><div class="samples">{cases}</div>' if cases else "")
    return section(name, body)


def _blank(found: ProbeResult, label: str) -> str:
    return f"{found.blank[label]:.3f}" if label in found.blank else "–"


def _plots(found: ProbeResult) -> str:
    """A curve for each kind of levels, and bars for each other kind of categories."""
    kinds: dict[str, list[tuple[str, float]]] = {}
    for row in found.report["categories"]:
        kinds.setdefault(row["kind"], []).append((row["name"].strip(), row[found.main[0]]))
    figures = []
    for kind, rows in kinds.items():
        if kind == "task":  # the levels of each task have a curve
            continue
        if kind in CURVES:
            rows = sorted(rows, key=lambda row: float(row[0]))
            paint = partial(_curve, rows=rows, title=CURVES[kind], score=found.report["scores"].get(kind))
        else:
            paint = partial(_bars, rows=rows, title=f"{found.main[0]}, by {kind}")
        figures.append(f'<figure class="card">{svg((3.8, 2.5), paint)}</figure>')
    return f'<div class="curves small">{"".join(figures)}</div>' if figures else ""


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


def _case(case: Case) -> str:
    prediction = escape(case.prediction[:TEXT]) or "(nothing)"
    if case.answer.endswith("points"):
        prediction += f" ({len(points(case.prediction))} points)"
    answer = f'<span class="bad">✗ {prediction}</span><span class="soft">true: {escape(case.answer[:TEXT])}</span>'
    picture = f'<img src="{image_uri(case.image)}" alt="{escape(case.question)}">'
    return (
        f'<figure class="card"><div class="picture">{picture}</div>'
        f"<figcaption><span>{escape(case.question)}</span>{answer}</figcaption></figure>"
    )
