"""Training in several stages, each from the checkpoint of the previous one (`vla train recipe=vlm-nano`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vla.errors import InputError
from vla.training.loop import Outcome
from vla.training.run_options import RunOptions


def chain(
    train: Callable[[RunOptions], Outcome], options: RunOptions, stages: Mapping[str, Mapping[str, Any]]
) -> Outcome:
    """Runs `train` once per stage, into the folder `out`/<stage>.

    With the option `probe_scenes` the model is measured before the first stage and after each one
    (`vla.training.stage_report`). An interrupted chain continues when it is run again.

    Args:
        train: The function that trains one stage.
        options: The options of all stages.
        stages: By name, the options that a stage overrides.

    Returns:
        The outcome of the last stage, or of the one that a signal stopped.

    Raises:
        InputError: a stage has an unknown option, or a probe is unknown; before any training.
    """
    base = {name: value for name, value in vars(options).items() if name != "stages"}
    for name, changes in stages.items():
        if unknown := sorted(changes.keys() - base.keys()):
            raise InputError(f"stage {name} has {', '.join(unknown)}: vla train has no such option")
    out, backbone, report = Path(options.out), options.backbone, None
    if scenes := options.probe_scenes:
        from vla.training.stage_report import START, StageReport

        report = StageReport(out, scenes, options.vqa)
        if isinstance(backbone, str) and backbone != "scratch":
            report.add(START, backbone)
    for name, changes in stages.items():
        run = out / name
        print(f"stage {name} -> {run}", flush=True)
        outcome = train(RunOptions(**_merged(base, changes) | {"backbone": backbone, "out": str(run)}))
        if not outcome.finished:
            break
        backbone = str(run)
        if report is not None:
            report.add(name, backbone)
    return outcome


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Values of `changes` take precedence; nested mappings are merged."""
    merged = dict(base)
    for key, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(base.get(key), Mapping)
        merged[key] = _merged(base[key], value) if both else value
    return merged
