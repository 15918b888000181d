"""Stages one after another, each from the checkpoint of the one before it (`vla train recipe=vlm-nano`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vla.errors import InputError
from vla.training.loop import Outcome


def chain(
    train: Callable[..., Outcome], options: Mapping[str, Any], stages: Mapping[str, Mapping[str, Any]]
) -> Outcome:
    """Runs `train` once a stage, into the folder of its name in `out`, with `options` as far as the stage says nothing.

    With `probe_scenes` the model is measured before and after each (`vla.training.stage_report`). The same again goes
    on where it stopped. Returns the outcome of the last stage, or of the one that a signal stopped.
    Raises InputError, before anything is trained, for a stage with an option that there is not, and an unknown probe.
    """
    for name, changes in stages.items():
        if unknown := sorted(changes.keys() - options.keys()):
            raise InputError(f"stage {name} says {', '.join(unknown)}: there is no such option of vla train")
    out, backbone, report = Path(options["out"]), options["backbone"], None
    if scenes := options["probe_scenes"]:
        from vla.training.stage_report import START, StageReport

        report = StageReport(out, scenes, options["vqa"])
        if isinstance(backbone, str) and backbone != "scratch":
            report.add(START, backbone)
    for name, changes in stages.items():
        run = out / name
        print(f"stage {name} -> {run}", flush=True)
        outcome = train(**_merged(options, changes) | {"backbone": backbone, "out": str(run)})
        if not outcome.finished:
            break
        backbone = str(run)
        if report is not None:
            report.add(name, backbone)
    return outcome


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Values of `changes` go first; mappings of both are merged, but for those that name stores."""
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(base.get(key), Mapping)
        merged[key] = _merged(base[key], value) if both else value
    return merged
