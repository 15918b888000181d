"""report.html of an evaluation: rates with intervals, comparisons of groups, and films, failures first."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from functools import partial
from html import escape
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla.common.html_page import bar, html_table, percent, section, tile, write_page
from vla.common.plots import COLORS, legend, png, style, svg
from vla.common.plural import counted
from vla.datasets.episodes import EpisodeStore
from vla.evaluation.reports.demo_report import clip, episodes
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
    sections = [_head(report), _tiles(report)]
    if report["by_axis"]:
        sections.append(section("What differs from training", _axes(report)))
    if report["latency"]:
        paint = partial(_paint_latency, rows=report["latency"])
        png(folder / "latency.png", LATENCY_SIZE, paint)
        sections.append(section("When the policy is slow", f'<figure class="card">{svg(LATENCY_SIZE, paint)}</figure>'))
    if report["vqa"]:
        rows = [bar(kind, value, percent(value)) for kind, value in report["vqa"].items()]
        sections.append(section("Visual questions", f'<div class="bars">{"".join(rows)}</div>'))
    if films:
        sections.append(section("Films", f'<div class="clips">{"".join(films)}</div>'))
    view = f"vla view {shlex.quote(str(folder))} episodes=N:N+1"
    hint = f"<p class='soft'>To view an episode: <code>{escape(view)}</code>; N is its number in the last column.</p>"
    sections.append(section("Episodes", hint + episodes(results, indices)))
    return write_page(folder / "report.html", "vla eval", sections)


def _head(report: Mapping[str, Any]) -> str:
    low, high = report["success_ci95"]
    rate = percent(report["success_rate"]) or "no rate"
    interval = f"95\N{NO-BREAK SPACE}% interval {100 * low:.0f}–{percent(high)}"
    lead = f"<b>{rate}</b> in {counted(report['episodes'], 'episode')} ({interval})"
    if report["crashed"]:
        lead += f"; {report['crashed']} crashed and count as neither success nor failure"
    description = f"{report['policy']}, task {report['task']}, seeds {report['seeds']}, phrasing {report['phrasing']}"
    if report["axes"]:
        description += f", axes {', '.join(report['axes'])}"
    if report["stopped_after"]:
        after = counted(report["stopped_after"], "episode")
        description += f"; stopped after {after}, when the rate differed from {report['stop']}"
    return f'<h1>Evaluation</h1>\n<p class="lead">{lead}.</p>\n<p class="soft">{escape(description)}</p>'


def _tiles(report: Mapping[str, Any]) -> str:
    low, high = report["success_always_valid95"]
    values = (
        ("success", percent(report["success_rate"]), f"always valid: {100 * low:.0f}–{percent(high)}"),
        ("swap success", percent(report["instruction_swap_success"]), "instruction for another object"),
        ("wrong object", percent(report["wrong_object_rate"]), "handled another object"),
        ("time to success", _number(report["seconds_to_success"], " s"), "mean over the successes"),
        ("jerk", _number(report["jerk"]), "rad/s³, of the commands"),
        ("collisions", _number(report["collisions"]), "an episode"),
        ("limit hits", _number(report["limit_hits"]), "steps an episode"),
        (
            "clamped",
            _number(report["clamped"]),
            "steps an episode, by the safety filter" if report["safety_filter"] else "no safety filter",
        ),
    )
    return f'<div class="tiles">{"".join(tile(name, value or "–", below) for name, value, below in values)}</div>'


def _number(value: float | None, unit: str = "") -> str:
    return "" if value is None else f"{value:.3g}{unit}"


def _axes(report: Mapping[str, Any]) -> str:
    rows = [{"axis": "nominal", **{k: report[k] for k in ("success_rate", "success_ci95")}}, *report["by_axis"]]
    rows = [row for row in rows if row["success_rate"] is not None]

    def paint(axes: Axes) -> None:
        for height, row in enumerate(reversed(rows)):
            low, high = row["success_ci95"]
            axes.plot((100 * low, 100 * high), (height, height), color=COLORS[0], linewidth=2, alpha=0.5)
            axes.plot(100 * row["success_rate"], height, "o", color=COLORS[0])
        axes.set_yticks(range(len(rows)), [row["axis"] for row in reversed(rows)])
        axes.set_xlim(-2, 102)
        style(axes, "success, 95 % interval", "%")

    cells = [
        (
            escape(row["axis"]),
            percent(row["success_rate"]),
            f"{100 * row['difference']:+.0f} [{100 * row['difference_ci95'][0]:+.0f}, "
            f"{100 * row['difference_ci95'][1]:+.0f}]",
            f"{row['p']:.2g}",
            row["verdict"],
        )
        for row in report["by_axis"]
    ]
    table = html_table(("axis", "success", "difference [points]", "p", ""), cells)
    return f'<figure class="card">{svg((5.5, 0.7 + 0.35 * len(rows)), paint)}</figure>{table}'


def _paint_latency(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    """Plots success against delay, one line per execution."""
    names = dict.fromkeys(row["execution"] for row in rows)
    for name, color in zip(names, cycle(COLORS), strict=False):
        selected = [row for row in rows if row["execution"] == name and row["success_rate"] is not None]
        delays = [row["delay"] for row in selected]
        low, high = ([100 * row["success_ci95"][end] for row in selected] for end in (0, 1))
        axes.fill_between(delays, low, high, color=color, alpha=0.12, linewidth=0)
        axes.plot(delays, [100 * row["success_rate"] for row in selected], "o-", color=color, label=name)
    axes.set_ylim(-2, 102)
    legend(axes)
    style(axes, "success [%], 95 % interval", "delay [s]")


def _shown(results: Sequence[Result]) -> list[Result]:
    ended = [r for r in results if not r.crash]
    failures = islice((r for r in ended if not r.success), FAILURES)
    return [*failures, *islice((r for r in ended if r.success), SUCCESSES)]


def _film(folder: Path, store: EpisodeStore, index: int, result: Result) -> str:
    path = folder / "films" / f"{index}.mp4"
    if not path.exists():
        write_video(path, compose(store[index]), store.embodiment.control_hz)
    outcome = "success" if result.success else "failure"
    return clip(path, escape(f"{outcome}: seed {result.seed}, {result.kind}, episode {index}"))
