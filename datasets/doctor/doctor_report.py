"""The page of `vla data doctor html=FILE`: each finding with a picture and a command, and images of every camera."""

from __future__ import annotations

from itertools import chain, cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8

from vla.common.html_page import sample_evenly, write_page
from vla.common.plots import COLORS, GREY, legend, style, svg
from vla.datasets.doctor.finding import Diagnosis, Finding
from vla.datasets.doctor.fixes import Fixes, numbers_text, steps_text
from vla.datasets.doctor.recording import Recording
from vla.datasets.episodes import EpisodeStore

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Strip = list[tuple[str, UInt8[np.ndarray, "h w 3"]]]
"""Images in a row, with their captions."""
DRAWN = 2
"""Number of plotted episodes for a finding in states or actions."""
CURVES = 3
"""Number of plotted components for a finding without a specific component: those with the largest motion."""
STEP_CHECKS = ("frozen-camera", "repeated-frames", "exposure-jump", "blank-images")
"""Findings in the images of single steps, shown with the surrounding images."""
WITHOUT_PICTURE = ("duplicate", "rate", "blank-camera", "constant")


def write_doctor_page(store: EpisodeStore, diagnosis: Diagnosis, fixes: Fixes, file: str) -> Path:
    """Writes or replaces the page `file`. Raises InputError if it cannot be written."""
    data = diagnosis.data
    return write_page(
        Path(file),
        f"{store.path}: findings",
        "doctor.html",
        name=store.path.rstrip("/").rpartition("/")[2],
        data=data,
        findings=[_finding(store, data, finding, fixes) for finding in diagnosis.findings],
        faults=sum(finding.level == "fault" for finding in diagnosis.findings),
        command=fixes.together(diagnosis.findings),
        cameras=_cameras(store, data) if diagnosis.scans else [],
    )


def _finding(store: EpisodeStore, data: Recording, finding: Finding, fixes: Fixes) -> dict[str, Any]:
    """What the page shows of a finding."""
    every = len(finding.episodes) == len(data)
    episodes = (
        "all episodes" if every else f"episode{'s' * (len(finding.episodes) > 1)} {numbers_text(finding.episodes)}"
    )
    strips, curves = _pictures(store, data, finding)
    return {
        "title": finding.check.replace("-", " ") + (f": {finding.subject}" if finding.subject else ""),
        "level": finding.level,
        "text": finding.text,
        "episodes": episodes if len(episodes) < 400 else f"{episodes[:400]} …",
        "steps": steps_text(finding.steps, 12) if finding.steps else "",
        "strips": strips,
        "curves": curves,
        "command": fixes.of(finding),
    }


def _pictures(store: EpisodeStore, data: Recording, finding: Finding) -> tuple[list[Strip], list[str]]:
    """Strips of images, and plots."""
    if finding.check in WITHOUT_PICTURE or not finding.episodes:
        return [], []
    if finding.check in STEP_CHECKS:
        return [_surrounding_images(store, finding)], []
    if finding.subject in data.body.cameras:
        return _comparison(store, data, finding), []
    return [], _curves(data, finding)


def _surrounding_images(store: EpisodeStore, finding: Finding) -> Strip:
    """The images of an episode before, during and after the finding."""
    episode, ranges = max(finding.steps.items(), key=lambda item: max(stop - start for start, stop in item[1]))
    start, stop = max(ranges, key=lambda pair: pair[1] - pair[0])
    last = store.records[episode].length - 1
    steps = [start - 1, *sample_evenly(range(start, stop), min(3, stop - start)), stop]
    steps = [step for step in dict.fromkeys(steps) if 0 <= step <= last]
    offset = store.records.frames(episode).start
    frames = store.frames(finding.subject, [offset + step for step in steps])
    return [(f"episode {episode}, step {step}", frame) for step, frame in zip(steps, frames, strict=True)]


def _comparison(store: EpisodeStore, data: Recording, finding: Finding) -> list[Strip]:
    """Images of affected episodes, above repaired ones and those of other episodes."""
    affected = sample_evenly(finding.episodes, min(4, len(finding.episodes)))
    images = [(f"episode {number}", _middle(store, finding.subject, number)) for number in affected]
    strips = [images]
    if finding.check == "exchanged-colors":
        strips.append([(f"{name}, red and blue swapped", image[..., ::-1]) for name, image in images])
    elif finding.check == "upside-down":
        strips.append([(f"{name}, rotated", image[::-1, ::-1]) for name, image in images])
    if len(images) < 3:  # they fit in one row
        strips = [[*chain.from_iterable(strips)]]
    excluded = set(finding.episodes)
    others = [number for number in data.numbers.tolist() if number not in excluded]
    if others:
        samples = sample_evenly(others, min(4, len(others)))
        strips.append([(f"another: episode {n}", _middle(store, finding.subject, n)) for n in samples])
    return strips


def _cameras(store: EpisodeStore, data: Recording) -> list[Strip]:
    """Images of the first, middle and last episode from each camera, and one with red and blue swapped, to compare."""
    strips = []
    for camera in data.body.cameras:
        numbers = sample_evenly(data.numbers.tolist(), min(3, len(data)))
        images = [(f"{camera}, episode {number}", _middle(store, camera, number)) for number in numbers]
        swapped = [(f"{name}, red and blue swapped", image[..., ::-1]) for name, image in images[:1]]
        strips.append([*images, *swapped])
    return strips


def _middle(store: EpisodeStore, camera: str, number: int) -> UInt8[np.ndarray, "h w 3"]:
    frames = store.records.frames(number)
    return store.frames(camera, [(frames.start + frames.stop) // 2])[0]


def _curves(data: Recording, finding: Finding) -> list[str]:
    """States and actions of an affected episode and of another one, with the steps of the finding shaded."""
    index = {number: i for i, number in enumerate(data.numbers.tolist())}
    longest = sorted(finding.episodes, key=lambda n: -max((b - a for a, b in finding.steps.get(n, ())), default=0))
    affected = longest[: DRAWN if len(finding.episodes) == len(data) else 1]
    excluded = set(finding.episodes)
    others = [number for number in index if number not in excluded]
    plotted = [(f"episode {number}", number) for number in affected]
    plotted += [(f"another: episode {number}", number) for number in others[: DRAWN - len(affected)]]
    charts = []
    for title, number in plotted:
        rows = slice(*data.bounds[index[number] : index[number] + 2].tolist())

        def paint(axes: Axes, rows: slice = rows, title: str = title, number: int = number) -> None:
            units: dict[str, None] = {}
            for color, (component, kind, values) in zip(cycle(COLORS), _plotted(data, finding), strict=False):
                line = "-" if kind == "state" else "--"
                name, _, unit = component.partition(" [")
                axes.plot(values[rows], line, color=color, linewidth=1.2, label=f"{kind} {name}")
                units[unit.rstrip("]")] = None
            axes.set_ylabel(", ".join(units), color=GREY)
            for start, stop in finding.steps.get(number, ()):
                axes.axvspan(start - 0.5, stop - 0.5, color=COLORS[1], alpha=0.15, linewidth=0)
            style(axes, title, "step")
            legend(axes)

        charts.append(svg((4.6, 2.5), paint))
    return charts


def _plotted(data: Recording, finding: Finding) -> list[tuple[str, str, np.ndarray]]:
    """Name, kind and values of the plotted components.

    These are the component of the finding and its counterpart, or those with the largest motion.
    """
    body = data.body
    pairs = {i: at for i, at in enumerate(body.measured_by)}
    if finding.subject in body.action or finding.subject in body.state:
        name = finding.subject
        actions = [
            i for i, at in pairs.items() if body.action[i] == name or (at is not None and body.state[at] == name)
        ]
        states = {pairs[i] for i in actions} | ({body.state.index(name)} if name in body.state else set())
        columns = [("state", at) for at in sorted(at for at in states if at is not None)]
        columns += [("action", i) for i in actions]
    else:
        largest = np.argsort(-np.ptp(data.state, axis=0))[:CURVES].tolist()
        columns = [("state", at) for at in largest] + [("action", i) for i, at in pairs.items() if at in largest]
    names, values = {"state": body.state, "action": body.action}, {"state": data.state, "action": data.action}
    return [(names[kind][i], kind, values[kind][:, i]) for kind, i in columns]
