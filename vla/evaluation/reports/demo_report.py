"""report.html of `vla demo`: one self-contained page."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vla.common.html_page import percent, percent_interval, write_page
from vla.common.plots import draw, panels, svg
from vla.evaluation.rollouts.trial import Result
from vla.evaluation.vlm.vqa import POINT_TOLERANCE, Case, parse_point, score

PHASES = ("record", "train", "evaluate")


@dataclass(frozen=True)
class Sample(Case):
    """A held-out question, with its kind."""

    kind: str

    @property
    def correct(self) -> bool:
        """Whether the model's answer is right."""
        return score(self.kind, self.prediction, self.answer) == 1

    @property
    def points(self) -> tuple[tuple[float, float] | None, ...]:
        """The true and the predicted point, as shares of the image's width and height."""
        return parse_point(self.answer), parse_point(self.prediction)


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
    curves = [svg((3.8, 2.7), partial(draw, panel=panel)) for panel in panels(losses, history)]
    return write_page(
        out / "report.html",
        "vla report",
        "demo.html",
        summary=summary,
        note=note,
        tiles=_tiles(summary),
        videos=videos,
        results=results,
        curves=curves,
        samples=samples,
        tolerance=POINT_TOLERANCE,
        phases=_phases(summary["minutes"]),
        facts=_facts(summary),
        commands=_commands(out),
    )


def _tiles(summary: Mapping[str, Any]) -> list[tuple[str, str, tuple[str, ...]]]:
    """The name of each tile, its number, and the lines below."""
    values, scratch = _headline_values(summary), _headline_values(summary.get("from_scratch_reference") or {})
    below = {
        "success": f"95\N{NO-BREAK SPACE}% interval {percent_interval(summary['success_ci95'])}",
        "swap success": "instruction for another object",
        "wrong object": "handled another object",
        "VQA accuracy": f"mean of {len(summary['vqa_accuracy'])} kinds, held out",
        "minutes": f"{summary['device']}, {summary['cores']} cores",
        "parameters": "from scratch" if summary["from_scratch"] else "from a pretrained backbone",
    }
    beside = {name: (f"from scratch: {value}",) for name, value in scratch.items()}
    return [(name, values.get(name, ""), (text, *beside.get(name, ()))) for name, text in below.items()]


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


def _phases(minutes: Mapping[str, float]) -> dict[str, float]:
    """The minutes of each phase; those below 3 seconds are omitted."""
    phases = {name: minutes[name] for name in PHASES} | {"other": minutes["total"] - sum(minutes[n] for n in PHASES)}
    return {name: value for name, value in phases.items() if value >= 0.05}


def _facts(summary: Mapping[str, Any]) -> dict[str, str]:
    origin = "trained from scratch" if summary["from_scratch"] else "fine-tuned from a pretrained backbone"
    facts = {
        "device": f"{summary['device']}, {summary['cores']} cores",
        "model": f"{_millions(summary['params'])} parameters, {origin}",
        "evaluation": f"{summary['episodes']} unseen scenes, phrasings that training never saw",
    }
    if reference := summary.get("from_scratch_reference"):
        values = ", ".join(f"{name} {value}" for name, value in _headline_values(reference).items())
        facts["from scratch"] = f"{values} (the same without the pretrained backbone, measured beforehand)"
    return facts


def _commands(out: Path) -> list[str]:
    """The commands for the files that exist in `out`."""
    commands = (
        ("rollouts.rrd", "rerun {}"),
        ("rollouts.zarr", "vla view {}"),
        ("demos.zarr", "vla view {}"),
        ("train", "tensorboard --logdir {}"),
        ("train", "vla eval policy={} seeds=2000:2060 out=outputs/eval"),
    )
    lines = [text.format(shlex.quote(str(out / name))) for name, text in commands if (out / name).exists()]
    return lines or ["vla --help"]


def _millions(count: int) -> str:
    return f"{count / 1e6:.1f}\N{NO-BREAK SPACE}M"
