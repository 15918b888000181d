"""The training curve: what a run logged, drawn as one picture for a file and as panels for a page."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from vla.common.atomic import atomic_replace
from vla.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Points = Sequence[tuple[int, float]]

# Okabe and Ito's colours: told apart by most colour-blind readers, and visible on white and on black.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GREY = "#808890"
"""Axes and labels, readable on light and dark."""
SMOOTH = 0.03
"""The share of a loss curve that its running mean spans."""


@dataclass(frozen=True)
class Panel:
    """One set of axes: bold `lines`, and `faint` ones behind, each named by what its colour stands for."""

    title: str
    lines: Mapping[str, Points]
    colors: Mapping[str, str]
    faint: Sequence[tuple[str, Points]] = ()
    log: bool = False
    low: float | None = None
    high: float | None = None


def read_losses(run: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, loss) of each source, from the TensorBoard files of a training run; empty where it has none."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    if not (run / "tensorboard").is_dir():
        return {}
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if tag.startswith("loss/")]
    return {tag.removeprefix("loss/"): [(e.step, e.value) for e in events.Scalars(tag)] for tag in tags}


def panels(losses: Mapping[str, Points], history: Sequence[Mapping[str, float]]) -> list[Panel]:
    """Loss a source, held-out action error and held-out accuracy over steps; what was not measured is left out.

    `history` has a row an evaluation: step, action_error (a share of the range) and `<store>/<kind>`, the accuracy in
    each kind of question; other keys are left alone. Accuracy is drawn for each store, as the mean over its kinds.
    """
    found = []
    losses = {name: points for name, points in losses.items() if points}
    kinds = sorted({key for row in history for key in row if "/" in key})
    faint = [(key.partition("/")[0], _series(history, key)) for key in kinds]
    accuracy = {store: _mean([points for name, points in faint if name == store]) for store in dict(faint)}
    # A source has one colour in every panel.
    colors = dict(zip(dict.fromkeys(("robot", *losses, *accuracy)), cycle(COLORS), strict=False))
    if losses:
        smooth = {name: running_mean(points) for name, points in losses.items()}
        found.append(Panel("training loss", smooth, colors, list(losses.items()), log=True))
    if error := _series(history, "action_error"):
        found.append(Panel("held-out action error, of the range", {"robot": error}, colors, low=0.0))
    if accuracy:
        found.append(Panel("held-out VQA accuracy", accuracy, colors, faint, low=0.0, high=1.02))
    return found


def training_curve(losses: Mapping[str, Points], history: Sequence[Mapping[str, float]], path: Path) -> None:
    """Writes the panels side by side to the PNG file `path`. Raises InputError when there is nothing to draw."""
    found = panels(losses, history)
    if not found:
        raise InputError(f"there is nothing to draw in {path}: the run logged neither a loss nor an evaluation")
    png(path, (4.0 * len(found), 2.8), *(partial(draw, panel=panel) for panel in found))


def png(path: Path, size: tuple[float, float], *paint: Callable[[Axes], None]) -> None:
    """Writes what each of `paint` draws, side by side on a figure of that size [inch], to the PNG file `path`."""

    def save(figure: Figure, axes: Sequence[Axes]) -> None:
        for axis, work in zip(axes, paint, strict=True):
            work(axis)
        with atomic_replace(path) as partial:
            figure.savefig(partial, format="png", dpi=150, facecolor="white")

    _with_axes(len(paint), size, save)


def svg(size: tuple[float, float], paint: Callable[[Axes], None]) -> str:
    """What `paint` draws on axes of that size [inch], as an `<svg>` element, its text left to the page's font."""
    buffer = io.StringIO()

    def save(figure: Figure, axes: Sequence[Axes]) -> None:
        paint(axes[0])
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)

    _with_axes(1, size, save)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def draw(axes: Axes, panel: Panel) -> None:
    from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, ScalarFormatter

    for name, points in panel.faint:
        axes.plot(*zip(*points, strict=True), color=panel.colors[name], alpha=0.25, linewidth=0.8)
    for name, points in panel.lines.items():
        dot = "o" if len(points) < 20 else None
        axes.plot(
            *zip(*points, strict=True), color=panel.colors[name], linewidth=2, marker=dot, markersize=3.5, label=name
        )
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    if panel.log:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(ScalarFormatter())
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_ylim(panel.low, panel.high)
    style(axes, panel.title, "step")
    if len(panel.lines) > 1:
        axes.legend(frameon=False, labelcolor=GREY, fontsize=9)


def style(axes: Axes, title: str, x: str) -> None:
    """The look of all plots: grey, two spines, a light grid."""
    axes.set_title(title, loc="left", color=GREY, fontsize=11)
    axes.set_xlabel(x, color=GREY)
    axes.grid(color=GREY, alpha=0.2, linewidth=0.6)
    axes.tick_params(which="both", colors=GREY, length=0)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(GREY)


def running_mean(points: Points) -> list[tuple[int, float]]:
    """A centred running mean, over fewer points towards the ends."""
    steps, values = zip(*points, strict=True)
    half = int(len(values) * SMOOTH / 2)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    at = np.arange(len(values))
    first, end = np.maximum(at - half, 0), np.minimum(at + half + 1, len(values))
    means: Float[np.ndarray, "n"] = (sums[end] - sums[first]) / (end - first)
    return list(zip(steps, means.tolist(), strict=True))


def _series(history: Sequence[Mapping[str, float]], key: str) -> list[tuple[int, float]]:
    return [(int(row["step"]), float(row[key])) for row in history if key in row]


def _mean(series: Sequence[Points]) -> list[tuple[int, float]]:
    """The mean of the curves at each step that any of them has."""
    steps = sorted({step for points in series for step, _ in points})
    return [(step, float(np.mean([dict(points)[step] for points in series if step in dict(points)]))) for step in steps]


def _with_axes(count: int, size: tuple[float, float], use: Callable[[Figure, Sequence[Axes]], None]) -> None:
    """Gives `use` a figure [inch] and its fresh axes; nothing is left in matplotlib's global state."""
    import matplotlib
    from matplotlib.figure import Figure

    # Text stays text, and the ids that matplotlib makes up are the same in every run.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "vla", "font.family": "sans-serif"}):
        figure = Figure(size, layout="constrained")
        use(figure, figure.subplots(1, count, squeeze=False)[0])
