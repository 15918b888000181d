"""report.html of a run of the control loop: statistics, commanded and measured joints, and lateness of the ticks."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vla.common.html_page import percent, section, tile, write_page
from vla.common.plots import COLORS, GREY, style, svg
from vla.control.recording import Trace
from vla.embodiment import Embodiment

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def control_page(folder: Path, report: Mapping[str, Any], trace: Trace, body: Embodiment) -> Path:
    """Writes `folder/report.html`; `report` holds the values of deploy.json."""
    title = f"{report['policy']} on {report['robot']}: {report['instruction']}"
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
    rows = "".join(
        f"<tr><td>{name}</td>"
        + "".join(f"<td>{_ms(report[name][key])}</td>" for key in ("p50", "p99", "max"))
        + "</tr>"
        for name in ("observe", "infer", "command", "jitter")
    )
    return _table("<th></th><th>median</th><th>99 %</th><th>max</th>", rows)


def _cameras(cameras: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{escape(name)}</td>"
        + "".join(f"<td>{_ms(one['age'][key])}</td>" for key in ("p50", "p99", "max"))
        + f"<td>{one['repeated']}</td><td>{one['dropped']}</td></tr>"
        for name, one in cameras.items()
    )
    head = "<th></th><th>age, median</th><th>99 %</th><th>max</th><th>repeated</th><th>dropped</th>"
    return _table(head, rows)


def _events(report: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{one['time']:.2f}\N{NO-BREAK SPACE}s</td><td>{one['count']}</td><td>{escape(one['what'])}</td></tr>"
        for one in report["events"]
    )
    more = report["events_left_out"]
    return _table("<th>from</th><th>count</th><th>event</th>", rows) + (f"<p>{more} more</p>" if more else "")


def _table(head: str, rows: str) -> str:
    return f'<div class="table"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.2f}\N{NO-BREAK SPACE}ms"


def _joint(axes: Axes, trace: Trace, body: Embodiment, at: int) -> None:
    """One component: the commands, and what was measured of it; chunks arrive at the faint lines."""
    time = trace.recent - trace.time[0]
    for moment in trace.answers:
        axes.axvline(moment - trace.time[0], color=GREY, alpha=0.25, linewidth=0.6)
    name, measured_at = body.action[at], body.measured_by[at]
    if measured_at is not None:
        axes.plot(time, trace.state[:, measured_at], color=COLORS[1], linewidth=1.2, label="measured")
    axes.plot(time, trace.sent[:, at], color=COLORS[0], linewidth=1.2, label="told")
    style(axes, name, "time [s]")
    if at == 0:
        axes.legend(frameon=False, labelcolor=GREY, fontsize=9)


def _late(axes: Axes, trace: Trace) -> None:
    time = np.array(trace.time) - trace.time[0]
    axes.plot(time, 1000 * np.array(trace.late), color=COLORS[0], linewidth=0.8)
    style(axes, "lateness of each tick [ms]", "time [s]")
