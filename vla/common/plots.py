"""Plots of training runs: as one image file, or as panels of a page."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from vla.common.atomic import atomic_replace
from vla.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Points = Sequence[tuple[int, float]]

# Okabe and Ito's colours: distinguishable with most colour vision deficiencies, and visible on white and black.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GREY = "#808890"
"""Colour of axes and labels, readable on light and dark backgrounds."""
LEGEND_CHARACTERS = 16
"""Number of characters of a legend per inch."""
SMOOTH = 0.03
"""Width of a loss curve's running mean, as a share of the curve."""


@dataclass(frozen=True)
class Panel:
    """One set of axes, with bold `lines` over `faint` ones; names of lines are keys of `colors`."""

    title: str
    lines: Mapping[str, Points]
    colors: Mapping[str, str]
    faint: Sequence[tuple[str, Points]] = ()
    log: bool = False
    low: float | None = None
    high: float | None = None


def read_losses(run: Path) -> dict[str, list[tuple[int, float]]]:
    """(step, loss) of each source, from the TensorBoard files of a training run; empty if it has none."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    if not (run / "tensorboard").is_dir():
        return {}
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if tag.startswith("loss/")]
    return {tag.removeprefix("loss/"): [(e.step, e.value) for e in events.Scalars(tag)] for tag in tags}


def panels(losses: Mapping[str, Points], history: Sequence[Mapping[str, float]]) -> list[Panel]:
    """Panels of the loss by source, held-out action error and held-out accuracy; those without data are omitted.

    Args:
        losses: (step, loss) of each source.
        history: One row per evaluation: step, action_error (as a share of the range) and `<store>/<kind>`, the accuracy
            for each kind of question; other keys are ignored. Accuracy is averaged over the kinds of each store.
    """
    result = []
    losses = {name: points for name, points in losses.items() if points}
    kinds = sorted({key for row in history for key in row if "/" in key})
    faint = [(key.partition("/")[0], _series(history, key)) for key in kinds]
    accuracy = {store: _mean([points for name, points in faint if name == store]) for store in dict(faint)}
    # A source has one colour in every panel.
    colors = dict(zip(dict.fromkeys(("robot", *losses, *accuracy)), cycle(COLORS), strict=False))
    if losses:
        smooth = {name: running_mean(points) for name, points in losses.items()}
        result.append(Panel("training loss", smooth, colors, list(losses.items()), log=True))
    if error := _series(history, "action_error"):
        result.append(Panel("held-out action error, of the range", {"robot": error}, colors, low=0.0))
    if accuracy:
        result.append(Panel("held-out VQA accuracy", accuracy, colors, faint, low=0.0, high=1.02))
    return result


def training_curve(losses: Mapping[str, Points], history: Sequence[Mapping[str, float]], path: Path) -> None:
    """Writes the panels side by side to the PNG file `path`. Raises InputError if there are none."""
    found = panels(losses, history)
    if not found:
        raise InputError(f"there is nothing to draw in {path}: the run logged neither a loss nor an evaluation")
    png(path, (4.0 * len(found), 2.8), *(partial(draw, panel=panel) for panel in found))


def png(path: Path, size: tuple[float, float], *paint: Callable[[Axes], None]) -> None:
    """Writes a PNG file with a figure of this size [inch]; each `paint` function draws one of its axes."""

    def save(figure: Figure, axes: Sequence[Axes]) -> None:
        for axis, work in zip(axes, paint, strict=True):
            work(axis)
        with atomic_replace(path) as partial:
            figure.savefig(partial, format="png", dpi=150, facecolor="white")

    _with_axes(len(paint), size, save)


def svg(size: tuple[float, float], paint: Callable[[Axes], None]) -> str:
    """Axes of this size [inch], drawn by `paint`, as an `<svg>` element; its text uses the page's font."""
    buffer = io.StringIO()

    def save(figure: Figure, axes: Sequence[Axes]) -> None:
        paint(axes[0])
        no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=no_metadata)

    _with_axes(1, size, save)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def draw(axes: Axes, panel: Panel) -> None:
    """Draws a panel."""
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
        legend(axes)


def style(axes: Axes, title: str, x: str) -> None:
    """Applies the common style of plots: grey, two spines, a light grid."""
    axes.set_title(title, loc="left", color=GREY, fontsize=11)
    axes.set_xlabel(x, color=GREY)
    axes.grid(color=GREY, alpha=0.2, linewidth=0.6)
    axes.tick_params(which="both", colors=GREY, length=0)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(GREY)


def legend(axes: Axes) -> None:
    """Adds a legend between the axes and their title, which `style` has set; it covers neither."""
    labels = axes.get_legend_handles_labels()[1]
    width = axes.get_window_extent().width / axes.figure.get_dpi()
    columns = max(1, int(LEGEND_CHARACTERS * width / (4 + max(map(len, labels)))))
    position: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (0.0, 1.0), "borderpad": 0.2, "ncols": columns}
    text: dict[str, Any] = {"title": axes.get_title("left"), "title_fontsize": 11, "alignment": "left", "fontsize": 9}
    shown = axes.legend(frameon=False, labelcolor=GREY, handlelength=1.2, columnspacing=1.0, **position, **text)
    shown.get_title().set_color(GREY)
    axes.set_title("", loc="left")


def running_mean(points: Points) -> list[tuple[int, float]]:
    """A centred running mean, with a smaller window at the ends."""
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
    """Calls `use` with a new figure of this size [inch] and its axes, without changing matplotlib's global state."""
    import matplotlib
    from matplotlib.figure import Figure

    # Text is not converted to paths, and matplotlib's ids are the same in every run.
    settings: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "vla", "font.family": "sans-serif"}
    with matplotlib.rc_context(settings | {"axes.formatter.useoffset": False}):
        figure = Figure(size, layout="constrained")
        use(figure, figure.subplots(1, count, squeeze=False)[0])
