"""The plots of a store's page, each an `<svg>` element."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from vla.common.plots import COLORS, GREY, style, svg
from vla.datasets.episode_index import EpisodeRecord
from vla.datasets.tools.digest import FAR, Component, Timing
from vla.types import outcome_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

KIND_COLORS = {"state": COLORS[0], "action": COLORS[1]}
GOOD, BAD = COLORS[2], COLORS[1]
BINS = 40


def lengths_chart(records: Sequence[EpisodeRecord]) -> str:
    """How many episodes have how many steps, by outcome."""
    lengths = {won: [record.length for record in records if record.success is won] for won in (True, False, None)}
    low, high = min(record.length for record in records), max(record.length for record in records)
    edges = np.linspace(low - 0.5, high + 0.5, min(BINS, high - low + 1) + 1)

    def paint(axes: Axes) -> None:
        colors = {True: GOOD, False: BAD, None: GREY}
        named = {outcome_of(won): (lengths[won], color) for won, color in colors.items()}
        shown = {name: values for name, values in named.items() if values[0]}
        axes.hist(
            [values for values, _ in shown.values()],
            bins=edges.tolist(),
            stacked=True,
            color=[color for _, color in shown.values()],
            label=list(shown),
        )
        axes.legend(frameon=False, labelcolor=GREY, fontsize=9)
        style(axes, "episodes by length", "steps")

    return svg((4.6, 2.5), paint)


def steps_chart(timing: Timing, control_hz: float) -> str:
    """How many steps took how long, on a logarithmic scale, beside the control period."""
    steps, period = 1000 * timing.steps, 1000 / control_hz
    span = max(float(np.abs(steps - period).max()), 0.1 * period)

    def paint(axes: Axes) -> None:
        axes.hist(steps, bins=np.linspace(period - span, period + span, 2 * BINS).tolist(), color=COLORS[0])
        axes.axvline(period, color=GREY, linestyle="--", linewidth=1, label=f"{control_hz:g} Hz")
        axes.set_yscale("log")
        axes.set_ylim(bottom=0.7)
        axes.legend(frameon=False, labelcolor=GREY, fontsize=9)
        style(axes, "time between steps", "ms")

    return svg((4.6, 2.5), paint)


def component_chart(name: str, found: Sequence[Component]) -> str:
    """The distribution of a component, of its state and of its action, with the quantiles that training maps to
    -1 and 1. What lies far out is left out, so that the rest can be seen."""
    title, _, unit = name.partition(" [")
    views = [_view(component) for component in found]
    edges = np.linspace(min(low for low, _ in views), max(high for _, high in views), BINS + 1)

    def paint(axes: Axes) -> None:
        for component in found:
            color = KIND_COLORS[component.kind]
            look = {"alpha": 0.5} if component.kind == "state" else {"histtype": "step", "linewidth": 1.4}
            axes.hist(component.values, bins=edges.tolist(), color=color, **look)
            for quantile in (component.q01, component.q99):
                axes.axvline(quantile, color=color, linestyle="--", linewidth=1)
        axes.set_yticks([])
        axes.set_xlim(float(edges[0]), float(edges[-1]))
        style(axes, title, unit.rstrip("]"))

    return svg((3.6, 2.0), paint)


def _view(component: Component) -> tuple[float, float]:
    """From where to where a component's values are drawn."""
    low, high = float(component.values.min()), float(component.values.max())
    margin = FAR * (component.q99 - component.q01)
    if margin:
        low, high = max(low, component.q01 - margin), min(high, component.q99 + margin)
    room = 0.05 * (high - low) or 0.05 * abs(low) or 1.0
    return min(low, component.q01) - room, max(high, component.q99) + room
