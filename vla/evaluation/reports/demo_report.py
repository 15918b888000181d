"""report.html of `vla demo`: one self-contained page."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from vla.common.html_page import bar, file_uri, html_table, image_uri, percent, section, tile, write_page
from vla.common.plots import draw, panels, svg
from vla.evaluation.rollouts.trial import Key, Result
from vla.evaluation.vlm.vqa import POINT_TOLERANCE, parse_point, score

PHASES = ("record", "train", "evaluate")


@dataclass(frozen=True)
class Sample:
    """A held-out question on an image, with the model's answer and the correct one."""

    image: UInt8[np.ndarray, "h w 3"]
    kind: str
    question: str
    prediction: str
    answer: str


def write_report(
    out: Path,
    summary: Mapping[str, Any],
    *,
    history: Sequence[Mapping[str, float]],
    losses: Mapping[str, Sequence[tuple[int, float]]],
    results: Sequence[Result],
    videos: Mapping[str, Path],
    samples: Sequence[Sample],
    note: str,
) -> Path:
    """Writes `out/report.html` and returns its path.

    Args:
        out: The folder of the run.
        summary: The content of summary.json; its `from_scratch_reference` (a summary or None) is shown for comparison.
        history: The evaluations in training (`plots.panels`).
        losses: The training losses (`plots.panels`).
        results: The results of the evaluation.
        videos: Films (.mp4 or .gif) of a "success" and of a "failure", if any.
        samples: Sample questions and answers.
        note: A short description of the run.
    """
    sections = (
        _headline(summary, note),
        _tiles(summary),
        section("Two episodes", _clips(videos, results)),
        section("Training", _curves(losses, history)),
        section("Visual questions", _bars(summary) + _samples(samples)),
        section("Episodes", episodes(results)),
        section("How it was made", _made(summary)),
        section("Next steps", _commands(out)),
    )
    return write_page(out / "report.html", "vla report", sections)


def _headline(summary: Mapping[str, Any], note: str) -> str:
    low, high = summary["success_ci95"]
    swapped = summary["instruction_swap_success"]
    lead = (
        f"In {summary['episodes']} unseen scenes the success rate of the policy is "
        f"<b>{percent(summary['success_rate'])}</b> (95\N{NO-BREAK SPACE}% interval {100 * low:.0f}–{percent(high)})."
    )
    if swapped is not None:
        lead += f" With instructions for another object in the same scenes, it is <b>{percent(swapped)}</b>."
    return (
        f'<h1>From demonstrations to a moving arm</h1>\n<p class="lead">{lead}</p>\n<p class="soft">{escape(note)}</p>'
    )


def _tiles(summary: Mapping[str, Any]) -> str:
    low, high = summary["success_ci95"]
    flat, scratch = _headline_values(summary), _headline_values(summary.get("from_scratch_reference") or {})
    below = {
        "success": f"95\N{NO-BREAK SPACE}% CI: {100 * low:.0f}–{percent(high)}",
        "swap success": "instruction for another object",
        "wrong object": "handled another object",
        "VQA accuracy": f"mean of {len(summary['vqa_accuracy'])} kinds, held out",
        "minutes": f"{escape(str(summary['device']))}, {summary['cores']} cores",
        "parameters": "from scratch" if summary["from_scratch"] else "from a pretrained backbone",
    }
    tiles = []
    for name, text in below.items():
        beside = f'<span class="beside">from scratch: {scratch[name]}</span>' if name in scratch else ""
        tiles.append(tile(name, flat.get(name, "–"), text, beside))
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _headline_values(summary: Mapping[str, Any]) -> dict[str, str]:
    """The numbers of the tiles as text, without those that the summary lacks."""
    kinds, minutes = summary.get("vqa_accuracy") or {}, summary.get("minutes") or {}
    values = {
        "success": percent(summary.get("success_rate")),
        "swap success": percent(summary.get("instruction_swap_success")),
        "wrong object": percent(summary.get("wrong_object_rate")),
        "VQA accuracy": percent(float(np.mean(list(kinds.values()))) if kinds else None),
        "minutes": f"{minutes['total']:.1f}" if "total" in minutes else "",
        "parameters": _millions(summary["params"]) if "params" in summary else "",
    }
    return {name: value for name, value in values.items() if value}


def _clips(videos: Mapping[str, Path], results: Sequence[Result]) -> str:
    figures = []
    for kind, success in (("success", True), ("failure", False)):
        path = videos.get(kind)
        count = sum(result.success is success for result in results)
        if path is not None:
            figures.append(clip(path, f"a {kind}, one of {count}"))
        else:
            reason = "was recorded as a film" if count else f"happened in {len(results)} episodes"
            figures.append(f'<div class="card none">no {kind} {reason}</div>')
    return f'<div class="clips">{"".join(figures)}</div>'


def clip(path: Path, caption: str) -> str:
    """An embedded film with a caption (HTML)."""
    media = (
        f'<video src="{file_uri(path)}" autoplay loop muted playsinline controls></video>'
        if path.suffix == ".mp4"
        else f'<img src="{file_uri(path)}" alt="a film">'
    )
    return f'<figure class="card">{media}<figcaption>{caption}</figcaption></figure>'


def _curves(losses: Mapping[str, Sequence[tuple[int, float]]], history: Sequence[Mapping[str, float]]) -> str:
    found = panels(losses, history)
    if not found:
        return '<p class="soft">This run has no training log.</p>'
    figures = "".join(f'<figure class="card">{svg((3.8, 2.7), partial(draw, panel=panel))}</figure>' for panel in found)
    text = "Bold: the running mean of the loss of each source, and accuracy averaged over kinds. Faint: the values."
    return f'<div class="curves">{figures}</div><p class="soft">{text}</p>'


def _bars(summary: Mapping[str, Any]) -> str:
    rows = [bar(kind, value, percent(value)) for kind, value in summary["vqa_accuracy"].items()]
    if (real := summary.get("real_vqa_accuracy")) is not None:
        rows.append(bar("easy-vqa", real, percent(real), "real"))
    text = f"Accuracy on held-out images. A point is right within {POINT_TOLERANCE:.0%} of the image's width."
    if real is not None:
        text += " easy-vqa: a public set of drawn shapes, not of this simulator."
    return f'<div class="bars">{"".join(rows)}</div><p class="soft">{text}</p>'


def _samples(samples: Sequence[Sample]) -> str:
    if not samples:
        return ""
    key = "<p class='soft'>For questions about a point: the ring is the tolerance, the cross is the answer.</p>"
    return f'<div class="samples">{"".join(_sample(sample) for sample in samples)}</div>{key}'


def _sample(sample: Sample) -> str:
    correct = score(sample.kind, sample.prediction, sample.answer) == 1
    style, mark = ("good", "✓") if correct else ("bad", "✗")
    answer = f'<span class="{style}">{mark} {escape(sample.prediction)}</span>'
    truth = "" if correct and sample.kind != "point" else f'<span class="soft">true: {escape(sample.answer)}</span>'
    picture = f'<img src="{image_uri(sample.image)}" alt="{escape(sample.question)}">{_markers(sample)}'
    return (
        f'<figure class="card"><div class="picture">{picture}</div>'
        f"<figcaption><span>{escape(sample.question)}</span>{answer}{truth}</figcaption></figure>"
    )


def _markers(sample: Sample) -> str:
    """The true point as a ring with the radius of the tolerance, the predicted one as a cross, both outlined."""
    if sample.kind != "point":
        return ""
    shapes = []
    if true := parse_point(sample.answer):
        shapes.append(f'<circle cx="{100 * true[0]:.0f}" cy="{100 * true[1]:.0f}" r="{100 * POINT_TOLERANCE:.0f}"/>')
    if predicted := parse_point(sample.prediction):
        shapes.append(f'<path d="M{100 * predicted[0]:.0f} {100 * predicted[1]:.0f}m-3-3l6 6m0-6l-6 6"/>')
    layers = (("#000", 2.2), ("#fff", 1.0))
    groups = "".join(f'<g stroke="{color}" stroke-width="{width}">{"".join(shapes)}</g>' for color, width in layers)
    return f'<svg viewBox="0 0 100 100" preserveAspectRatio="none" fill="none">{groups}</svg>'


def episodes(results: Sequence[Result], indices: Mapping[Key, int] | None = None) -> str:
    """The episodes as tables, failures first; `indices` are the indices of the episodes in the store."""
    failures = [result for result in results if not result.success]
    successes = [result for result in results if result.success]
    text = f"{len(failures)} of {len(results)} episodes failed." if failures else "No episode failed."
    blocks = [f"<p>{text} Swapped: the instruction names another object of the scene of that seed.</p>"]
    if failures:
        blocks.append(_table(failures, indices))
    if successes:
        folded = f"{len(successes)} successful episodes" if len(successes) > 1 else "1 successful episode"
        blocks.append(f"<details><summary>{folded}</summary>{_table(successes, indices)}</details>")
    return "\n".join(blocks)


def _table(results: Sequence[Result], indices: Mapping[Key, int] | None) -> str:
    names = ("seed", "group", "instruction", "outcome", "steps", *(("episode",) if indices is not None else ()))
    rows = []
    for result in results:
        row = [str(result.seed), escape(result.kind), escape(result.instruction), _outcome(result), str(result.length)]
        rows.append(row if indices is None else [*row, str(indices.get(result.key, ""))])
    return html_table(names, rows)


def _outcome(result: Result) -> str:
    if result.crash:
        return f'<span class="bad">crash</span>: {escape(result.crash.strip().splitlines()[-1])}'
    outcome = '<span class="good">success</span>' if result.success else '<span class="bad">failure</span>'
    also = ["wrong object"] * result.wrong_object + [f"{result.invalid} invalid chunks"] * bool(result.invalid)
    return ", ".join((outcome, *also))


def _made(summary: Mapping[str, Any]) -> str:
    minutes = summary["minutes"]
    phases = {name: minutes[name] for name in PHASES} | {"other": minutes["total"] - sum(minutes[n] for n in PHASES)}
    shown = {name: value for name, value in phases.items() if value >= 0.05}
    blocks = "".join(f'<i style="flex:{value:.3f}"></i>' for value in shown.values())
    key = "".join(f"<span>{name} {value:.1f} min</span>" for name, value in shown.items())
    facts = {
        "device": f"{summary['device']}, {summary['cores']} cores",
        "model": f"{_millions(summary['params'])} parameters, "
        + ("trained from scratch" if summary["from_scratch"] else "fine-tuned from a pretrained backbone"),
        "evaluation": f"{summary['episodes']} unseen scenes, phrasings that training never saw",
    }
    if reference := summary.get("from_scratch_reference"):
        values = ", ".join(f"{name} {value}" for name, value in _headline_values(reference).items())
        facts["from scratch"] = f"{values} (the same without the pretrained backbone, measured beforehand)"
    rows = "".join(f"<dt>{name}</dt><dd>{escape(str(value))}</dd>" for name, value in facts.items())
    return f'<div class="phases">{blocks}</div><div class="key soft">{key}</div><dl>{rows}</dl>'


def _commands(out: Path) -> str:
    """The commands for the files that exist in `out`."""
    commands = (
        ("rollouts.rrd", "rerun {}"),
        ("rollouts.zarr", "vla view {}"),
        ("demos.zarr", "vla view {}"),
        ("train", "tensorboard --logdir {}"),
        ("train", "vla eval policy={} seeds=2000:2060 out=outputs/eval"),
    )
    lines = [text.format(shlex.quote(str(out / name))) for name, text in commands if (out / name).exists()]
    return f'<pre class="card">{escape(chr(10).join(lines or ["vla --help"]))}</pre>'


def _millions(count: int) -> str:
    return f"{count / 1e6:.1f}\N{NO-BREAK SPACE}M"
