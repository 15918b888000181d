"""report.html of a run of the control loop: statistics, commanded and measured joints, and lateness of the ticks."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vla.common.html_page import html_table, percent, section, tile, write_page
from vla.common.plots import COLORS, GREY, legend, style, svg
from vla.control.recording import Trace
from vla.embodiment import Embodiment

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MIN_SPAN = 0.02
"""Smallest vertical span of a plot, as a fraction of the component's range."""


def control_page(folder: Path, report: Mapping[str, Any], trace: Trace, body: Embodiment) -> Path:
    """Writes `folder/report.html`; `report` holds the values of deploy.json."""
    title = f"{report['policy']} on {body.name}: {report['instruction']}"
    head = f"<header><h1>Deployment</h1><p>{escape(title)}</p><p>Ended: {escape(report['reason'])}.</p></header>"
    sections = [head, _tiles(report), section("Times", _times(report))]
    if report["cameras"]:
        sections.append(section("Cameras", _cameras(report["cameras"])))
    sections.append(section("Events", _events(report)))
    if trace.time:
        figures = "".join(
            f'<figure class="card">{svg((5.5, 2.2), partial(_joint, trace=trace, body=body, at=at))}</figure>'
            for at in range(len(body.action))
        )
        sections.append(section("Commanded and measured", f'<div class="curves">{figures}</div>'))
        sections.append(
            section("Lateness", f'<figure class="card">{svg((8, 2.4), partial(_late, trace=trace))}</figure>')
        )
    return write_page(folder / "report.html", "vla deploy", sections)


def _tiles(report: Mapping[str, Any]) -> str:
    clamps = ", ".join(f"{name} {count}" for name, count in report["clamps"].items()) or "none"
    tiles = [
        tile("rate", f"{report['rate']:.1f} Hz", f"{report['ticks']} ticks in {report['seconds']:.1f} s"),
        tile("missed deadlines", str(report["missed"]), "ticks that were skipped"),
        tile("jitter", _ms(report["jitter"]["p99"]), "99th percentile of the lateness of ticks"),
        tile("inference delay", _ms(report["infer"]["p50"]), f"median of {report['chunks']} chunks"),
        tile("stale", percent(report["stale"]), "of all actions came too late"),
        tile("held", percent(report["holds"] / max(report["ticks"], 1)), "of ticks, without an action"),
        tile("clamped", str(sum(report["clamps"].values())), clamps),
        tile("faults", str(report["faults"]), "calls to the robot that failed"),
    ]
    if report.get("success") is not None:
        tiles.insert(0, tile("success", "yes" if report["success"] else "no", "as the simulation judges"))
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _times(report: Mapping[str, Any]) -> str:
    names = ("observe", "infer", "command", "jitter")
    rows = [(name, *(_ms(report[name][key]) for key in ("p50", "p99", "max"))) for name in names]
    return html_table(("", "median", "99 %", "max"), rows)


def _cameras(cameras: Mapping[str, Any]) -> str:
    rows = [
        (escape(name), *(_ms(c["age"][key]) for key in ("p50", "p99", "max")), str(c["repeated"]), str(c["dropped"]))
        for name, c in cameras.items()
    ]
    return html_table(("", "age, median", "99 %", "max", "repeated", "dropped"), rows)


def _events(report: Mapping[str, Any]) -> str:
    rows = [(f"{e['time']:.2f}\N{NO-BREAK SPACE}s", str(e["count"]), escape(e["what"])) for e in report["events"]]
    more = report["events_left_out"]
    return html_table(("from", "count", "event"), rows) + (f"<p>{more} more</p>" if more else "")


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.2f}\N{NO-BREAK SPACE}ms"


def _joint(axes: Axes, trace: Trace, body: Embodiment, at: int) -> None:
    """One component: the commands, and what was measured of it; chunks arrive at the faint lines."""
    time = trace.recent - trace.time[0]
    for moment in trace.answers:
        axes.axvline(moment - trace.time[0], color=GREY, alpha=0.25, linewidth=0.6)
    name, measured_at = body.action[at], body.measured_by[at]
    if measured_at is not None:
        axes.plot(time, trace.state[:, measured_at], color=COLORS[1], linewidth=2.4, alpha=0.8, label="measured")
    axes.plot(time, trace.sent[:, at], color=COLORS[0], linewidth=1.2, linestyle=(0, (4, 2)), label="commanded")
    low, high = axes.get_ylim()
    least = MIN_SPAN * (body.action_high[at] - body.action_low[at])
    if high - low < least:  # an arm that stands still: noise is not drawn as motion
        axes.set_ylim((low + high - least) / 2, (low + high + least) / 2)
    style(axes, name, "time [s]")
    if at == 0:
        legend(axes)


def _late(axes: Axes, trace: Trace) -> None:
    time = np.array(trace.time) - trace.time[0]
    axes.plot(time, 1000 * np.array(trace.late), color=COLORS[0], linewidth=0.8)
    style(axes, "lateness of each tick [ms]", "time [s]")
