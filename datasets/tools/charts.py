"""The plots of a store's page, as `<svg>` elements."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from vla.common.plots import COLORS, GREY, legend, style, svg
from vla.datasets.episode_index import EpisodeRecord
from vla.datasets.tools.digest import FAR, Component, Timing
from vla.types import outcome_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

KIND_COLORS = {"state": COLORS[0], "action": COLORS[1]}
GOOD, BAD = COLORS[2], COLORS[1]
BINS = 40


def lengths_chart(records: Sequence[EpisodeRecord]) -> str:
    """A histogram of episode lengths, by outcome."""
    lengths = {
        outcome: [record.length for record in records if record.success is outcome] for outcome in (True, False, None)
    }
    low, high = min(record.length for record in records), max(record.length for record in records)
    edges = np.linspace(low - 0.5, high + 0.5, min(BINS, high - low + 1) + 1)

    def paint(axes: Axes) -> None:
        from matplotlib.ticker import MaxNLocator

        colors = {True: GOOD, False: BAD, None: GREY}
        series = {outcome_of(outcome): (lengths[outcome], color) for outcome, color in colors.items()}
        series = {name: values for name, values in series.items() if values[0]}
        axes.hist(
            [values for values, _ in series.values()],
            bins=edges.tolist(),
            stacked=True,
            color=[color for _, color in series.values()],
            label=list(series),
        )
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        style(axes, "episodes by length", "steps")
        legend(axes)

    return svg((4.6, 2.5), paint)


def steps_chart(timing: Timing, control_hz: float) -> str:
    """A histogram of the times between steps, on a logarithmic scale, with the control period."""
    steps, period = 1000 * timing.steps, 1000 / control_hz
    span = max(float(np.abs(steps - period).max()), 0.1 * period)

    def paint(axes: Axes) -> None:
        axes.hist(steps, bins=np.linspace(period - span, period + span, 2 * BINS).tolist(), color=COLORS[0])
        axes.axvline(period, color=GREY, linestyle="--", linewidth=1, label=f"{control_hz:g} Hz")
        axes.set_yscale("log")
        axes.set_ylim(bottom=0.7)
        style(axes, "time between steps", "ms")
        legend(axes)

    return svg((4.6, 2.5), paint)


def component_chart(name: str, found: Sequence[Component]) -> str:
    """Histograms of the state and action of a component, with the quantiles that training maps to -1 and 1.

    Outliers are outside the plotted range.
    """
    title, _, unit = name.partition(" [")
    ranges = [_plot_range(component) for component in found]
    edges = np.linspace(min(low for low, _ in ranges), max(high for _, high in ranges), BINS + 1)

    def paint(axes: Axes) -> None:
        for component in found:
            color = KIND_COLORS[component.kind]
            line_style = {"alpha": 0.5} if component.kind == "state" else {"histtype": "step", "linewidth": 1.4}
            axes.hist(component.values, bins=edges.tolist(), color=color, **line_style)
            for quantile in (component.q01, component.q99):
                axes.axvline(quantile, color=color, linestyle="--", linewidth=1)
        axes.set_yticks([])
        axes.set_xlim(float(edges[0]), float(edges[-1]))
        style(axes, title, unit.rstrip("]"))

    return svg((3.6, 2.0), paint)


def _plot_range(component: Component) -> tuple[float, float]:
    """The plotted range of a component."""
    low, high = float(component.values.min()), float(component.values.max())
    margin = FAR * (component.q99 - component.q01)
    if margin:
        low, high = max(low, component.q01 - margin), min(high, component.q99 + margin)
    room = 0.05 * (high - low) or 0.05 * abs(low) or 1.0
    return min(low, component.q01) - room, max(high, component.q99) + room
