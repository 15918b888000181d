"""report.html of an evaluation: rates with intervals, comparisons of groups, and films, failures first."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla.common.html_page import percent, write_page
from vla.common.plots import COLORS, legend, png, style, svg
from vla.datasets.episodes import EpisodeStore
from vla.evaluation.rollouts.result_store import STORE, key_of
from vla.evaluation.rollouts.trial import Result
from vla.recording.video import compose, write_video

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FAILURES, SUCCESSES = 6, 3
"""The numbers of films on the page."""
LATENCY_SIZE = (5.5, 3.2)


def evaluation_page(folder: Path, report: Mapping[str, Any], results: Sequence[Result]) -> Path:
    """Writes `folder/report.html` from the report of eval.json and the recorded episodes; films go to `films/`."""
    with EpisodeStore.open(folder / STORE) as store:
        indices = {key_of(record.info): index for index, record in enumerate(store.records)}
        films = [_film(folder, store, indices[r.key], r) for r in _shown(results) if r.key in indices]
    latency = None
    if report["latency"]:
        paint = partial(_paint_latency, rows=report["latency"])
        png(folder / "latency.png", LATENCY_SIZE, paint)
        latency = svg(LATENCY_SIZE, paint)
    return write_page(
        folder / "report.html",
        "vla eval",
        "evaluation.html",
        report=report,
        axes=_axes_chart(report) if report["by_axis"] else None,
        comparisons=[_comparison(row) for row in report["by_axis"]],
        latency=latency,
        films=films,
        view=f"vla view {shlex.quote(str(folder))} episodes=N:N+1",
        results=results,
        indices=indices,
    )


def _axes_chart(report: Mapping[str, Any]) -> str:
    """The success rate of the unchanged scenes and of each axis, with their intervals."""
    rows = [{"axis": "nominal", **{k: report[k] for k in ("success_rate", "success_ci95")}}, *report["by_axis"]]
    rows = [row for row in rows if row["success_rate"] is not None]

    def paint(axes: Axes) -> None:
        for height, row in enumerate(reversed(rows)):
            low, high = row["success_ci95"]
            axes.plot((100 * low, 100 * high), (height, height), color=COLORS[0], linewidth=2, alpha=0.5)
            axes.plot(100 * row["success_rate"], height, "o", color=COLORS[0])
        axes.set_yticks(range(len(rows)), [row["axis"] for row in reversed(rows)])
        axes.set_xlim(-2, 102)
        axes.set_ylim(-0.5, len(rows) - 0.5)
        style(axes, "success, 95 % interval", "%")

    return svg((5.5, 0.7 + 0.35 * len(rows)), paint)


def _comparison(row: Mapping[str, Any]) -> tuple[str, ...]:
    """The table row of an axis."""
    difference, low, high = (f"{100 * value:+.0f}" for value in (row["difference"], *row["difference_ci95"]))
    rate = percent(row["success_rate"])
    return row["axis"], rate, f"{difference} [{low}, {high}]", f"{row['p']:.2g}", row["verdict"]


def _paint_latency(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    """Plots success against delay, one line per execution."""
    names = dict.fromkeys(row["execution"] for row in rows)
    step = 0.012 * (max(row["delay"] for row in rows) or 1.0)  # offset, so that equal curves do not hide each other
    for index, (name, color) in enumerate(zip(names, cycle(COLORS), strict=False)):
        selected = [row for row in rows if row["execution"] == name and row["success_rate"] is not None]
        delays = [row["delay"] + step * (index - (len(names) - 1) / 2) for row in selected]
        rates = [100 * row["success_rate"] for row in selected]
        errors = [
            [abs(100 * row["success_ci95"][end] - rate) for row, rate in zip(selected, rates, strict=True)]
            for end in (0, 1)
        ]
        axes.errorbar(delays, rates, errors, color=color, marker="o", markersize=4, capsize=2, label=name)
    axes.set_ylim(-2, 102)
    style(axes, "success [%], 95 % interval", "delay [s]")
    legend(axes)


def _shown(results: Sequence[Result]) -> list[Result]:
    ended = [r for r in results if not r.crash]
    failures = islice((r for r in ended if not r.success), FAILURES)
    return [*failures, *islice((r for r in ended if r.success), SUCCESSES)]


def _film(folder: Path, store: EpisodeStore, index: int, result: Result) -> tuple[Path, str]:
    """The film of an episode and its caption."""
    path = folder / "films" / f"{index}.mp4"
    if not path.exists():
        write_video(path, compose(store[index]), store.embodiment.control_hz)
    outcome = "success" if result.success else "failure"
    return path, f"{outcome}: seed {result.seed}, {result.kind}, episode {index}"
