"""report.html of a run of the control loop: statistics, commanded and measured joints, and lateness of the ticks."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vla.common.html_page import milliseconds, write_page
from vla.common.plots import COLORS, GREY, legend, style, svg
from vla.control.recording import Trace
from vla.embodiment import Embodiment

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MIN_SPAN = 0.02
"""Smallest vertical span of a plot, as a fraction of the component's range."""


def control_page(folder: Path, report: Mapping[str, Any], trace: Trace, body: Embodiment) -> Path:
    """Writes `folder/report.html`; `report` holds the values of deploy.json."""
    times = [(name, *_quantiles(report[name])) for name in ("observe", "infer", "command", "jitter")]
    cameras = [
        (name, *_quantiles(camera["age"]), str(camera["repeated"]), str(camera["dropped"]))
        for name, camera in report["cameras"].items()
    ]
    joints = len(body.action) if trace.time else 0
    return write_page(
        folder / "report.html",
        "vla deploy",
        "run.html",
        report=report,
        robot=body.name,
        times=times,
        cameras=cameras,
        events=[(f"{e['time']:.2f}\N{NO-BREAK SPACE}s", str(e["count"]), e["what"]) for e in report["events"]],
        joints=[svg((3.8, 2.2), partial(_joint, trace=trace, body=body, at=at)) for at in range(joints)],
        lateness=svg((8, 2.4), partial(_late, trace=trace)) if trace.time else None,
    )


def _quantiles(seconds: Mapping[str, float]) -> tuple[str, ...]:
    return tuple(milliseconds(seconds[key]) for key in ("p50", "p99", "max"))


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
    legend(axes)


def _late(axes: Axes, trace: Trace) -> None:
    time = np.array(trace.time) - trace.time[0]
    axes.plot(time, 1000 * np.array(trace.late), color=COLORS[0], linewidth=0.8)
    style(axes, "lateness of each tick [ms]", "time [s]")
