"""The page that `vla data doctor html=FILE` writes: each finding with a picture and its command, and every camera."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import UInt8

from vla.common.html_page import image_uri, section, spread, tile, write_page
from vla.common.plots import COLORS, GREY, style, svg
from vla.datasets.doctor.finding import Diagnosis, Finding
from vla.datasets.doctor.fixes import Fixes, numbers_text, steps_text
from vla.datasets.doctor.recording import Recording
from vla.datasets.episodes import EpisodeStore

if TYPE_CHECKING:
    from matplotlib.axes import Axes


PICTURE = 220
"""Width and height [px] that a picture has at most."""
DRAWN = 2
"""Episodes that are drawn for a finding in numbers."""
CURVES = 3
"""Components that are drawn for a finding of no one component: those that move most."""
IN_TIME = ("frozen-camera", "repeated-frames", "exposure-jump", "blank-images")
"""Findings in the images of single steps: shown are the images around one."""
NOTHING_TO_SEE = ("duplicate", "rate", "blank-camera", "constant")


def write_doctor_page(store: EpisodeStore, diagnosis: Diagnosis, fixes: Fixes, file: str) -> Path:
    """Writes the page to `file`, in the place of what is there. Raises InputError when it cannot."""
    data, findings = diagnosis.data, diagnosis.findings
    faults = sum(finding.level == "fault" for finding in findings)
    tiles = (
        tile("episodes", f"{len(data)}", f"{len(data.time)} steps at {data.hz:g} Hz"),
        tile("faults", f"{faults}", "what should be repaired"),
        tile("hints", f"{len(findings) - faults}", "what a person should look at"),
    )
    name = store.path.rstrip("/").rpartition("/")[2]
    head = f'<h1>{escape(name)}</h1>\n<p class="lead">What stands out</p>\n<div class="tiles">{"".join(tiles)}</div>'
    sections = [head, *(_finding(store, data, finding, fixes) for finding in findings)]
    if not findings:
        sections.append("<p>Nothing was found.</p>")
    if (command := fixes.together(findings)) is not None:
        sections.append(section("All that can be left out or cut, in one", _command(command)))
    if diagnosis.scans:
        sections.append(section("Cameras", _cameras(store, data)))
    return write_page(Path(file), f"{store.path}: what stands out", sections)


def _finding(store: EpisodeStore, data: Recording, finding: Finding, fixes: Fixes) -> str:
    look = "bad" if finding.level == "fault" else "soft"
    every = len(finding.episodes) == len(data)
    where = "all episodes" if every else f"episodes {numbers_text(finding.episodes)}"
    where = where if len(where) < 400 else f"{where[:400]} …"
    steps = f"<br>steps {escape(steps_text(finding.steps, 12))}" if finding.steps else ""
    body = (
        f'<p><span class="{look}">{finding.level}</span> {escape(finding.text)}</p>'
        f'<p class="soft">{escape(where)}{steps}</p>{_picture(store, data, finding)}{_command(fixes.of(finding))}'
    )
    title = finding.check.replace("-", " ") + (f": {finding.subject}" if finding.subject else "")
    return section(escape(title), body)


def _command(text: str) -> str:
    return f"<pre>{escape(text)}</pre>" if text.startswith("vla ") else f"<p>{escape(text)}</p>"


def _picture(store: EpisodeStore, data: Recording, finding: Finding) -> str:
    if finding.check in NOTHING_TO_SEE or not finding.episodes:
        return ""
    if finding.check in IN_TIME:
        return _around(store, finding)
    if finding.subject in data.body.cameras:
        return _beside(store, data, finding)
    return _curves(data, finding)


def _around(store: EpisodeStore, finding: Finding) -> str:
    """The images of an episode before, in and after what was found."""
    episode, ranges = max(finding.steps.items(), key=lambda item: max(stop - start for start, stop in item[1]))
    start, stop = max(ranges, key=lambda pair: pair[1] - pair[0])
    last = store.records[episode].length - 1
    steps = [start - 1, *spread(range(start, stop), min(3, stop - start)), stop]
    shown = [step for step in dict.fromkeys(steps) if 0 <= step <= last]
    offset = store.records.frames(episode).start
    frames = store.frames(finding.subject, [offset + step for step in shown])
    return _strip([(f"episode {episode}, step {step}", frame) for step, frame in zip(shown, frames, strict=True)])


def _beside(store: EpisodeStore, data: Recording, finding: Finding) -> str:
    """Images of what was found above those of other episodes, or above what repairs them."""
    found = spread(finding.episodes, min(4, len(finding.episodes)))
    images = [(f"episode {number}", _middle(store, finding.subject, number)) for number in found]
    rows = [_strip(images)]
    if finding.check == "exchanged-colors":
        rows.append(_strip([(f"{name}, red and blue exchanged", image[..., ::-1]) for name, image in images]))
    elif finding.check == "upside-down":
        rows.append(_strip([(f"{name}, turned", image[::-1, ::-1]) for name, image in images]))
    odd = set(finding.episodes)
    others = [number for number in data.numbers.tolist() if number not in odd]
    if others:
        chosen = spread(others, min(4, len(others)))
        rows.append(_strip([(f"another: episode {n}", _middle(store, finding.subject, n)) for n in chosen]))
    return "".join(rows)


def _cameras(store: EpisodeStore, data: Recording) -> str:
    """First, middle and last episode of each camera, with red and blue as they are and exchanged: only a person can
    tell which is right, and which side is up."""
    rows = []
    for camera in data.body.cameras:
        numbers = spread(data.numbers.tolist(), min(3, len(data)))
        images = [(f"{camera}, episode {number}", _middle(store, camera, number)) for number in numbers]
        exchanged = [(f"{name}, red and blue exchanged", image[..., ::-1]) for name, image in images[:1]]
        rows.append(_strip([*images, *exchanged]))
    return "".join(rows)


def _middle(store: EpisodeStore, camera: str, number: int) -> UInt8[np.ndarray, "h w 3"]:
    frames = store.records.frames(number)
    return store.frames(camera, [(frames.start + frames.stop) // 2])[0]


def _strip(images: Sequence[tuple[str, UInt8[np.ndarray, "h w 3"]]]) -> str:
    figures = "".join(
        f'<figure class="card"><img src="{image_uri(np.ascontiguousarray(image), ".jpeg", PICTURE)}" '
        f'alt="{escape(name)}"><figcaption>{escape(name)}</figcaption></figure>'
        for name, image in images
    )
    return f'<div class="shots">{figures}</div>'


def _curves(data: Recording, finding: Finding) -> str:
    """State and action over the steps of an episode that is affected, and of one that is not; what was found shaded."""
    place = {number: i for i, number in enumerate(data.numbers.tolist())}
    longest = sorted(finding.episodes, key=lambda n: -max((b - a for a, b in finding.steps.get(n, ())), default=0))
    affected = longest[: DRAWN if len(finding.episodes) == len(data) else 1]
    odd = set(finding.episodes)
    others = [number for number in place if number not in odd]
    shown = [(f"episode {number}", number) for number in affected]
    shown += [(f"another: episode {number}", number) for number in others[: DRAWN - len(affected)]]
    charts = []
    for title, number in shown:
        part = slice(*data.bounds[place[number] : place[number] + 2].tolist())

        def paint(axes: Axes, part: slice = part, title: str = title, number: int = number) -> None:
            for color, (name, kind, values) in zip(_cycle(), _drawn(data, finding), strict=False):
                line = "-" if kind == "state" else "--"
                axes.plot(values[part], line, color=color, linewidth=1.2, label=f"{kind} {name}")
            for start, stop in finding.steps.get(number, ()):
                axes.axvspan(start - 0.5, stop - 0.5, color=COLORS[1], alpha=0.15, linewidth=0)
            axes.legend(frameon=False, labelcolor=GREY, fontsize=7)
            style(axes, title, "step")

        charts.append(f'<figure class="card">{svg((4.6, 2.5), paint)}</figure>')
    return f'<div class="curves">{"".join(charts)}</div>'


def _cycle() -> list[str]:
    return [*COLORS, *COLORS]


def _drawn(data: Recording, finding: Finding) -> list[tuple[str, str, np.ndarray]]:
    """Name, kind and values of what is drawn: the component that it is about with its counterpart, or those that move
    most."""
    body = data.body
    pairs = {i: at for i, at in enumerate(body.measured_by)}
    if finding.subject in body.action or finding.subject in body.state:
        name = finding.subject
        actions = [
            i for i, at in pairs.items() if body.action[i] == name or (at is not None and body.state[at] == name)
        ]
        states = {pairs[i] for i in actions} | ({body.state.index(name)} if name in body.state else set())
        chosen = [("state", at) for at in sorted(at for at in states if at is not None)]
        chosen += [("action", i) for i in actions]
    else:
        most = np.argsort(-np.ptp(data.state, axis=0))[:CURVES].tolist()
        chosen = [("state", at) for at in most] + [("action", i) for i, at in pairs.items() if at in most]
    names, values = {"state": body.state, "action": body.action}, {"state": data.state, "action": data.action}
    return [(names[kind][i], kind, values[kind][:, i]) for kind, i in chosen]
