"""Checkpoints that are whole or absent, and resume to the bit. No pickle: safetensors and JSON.

| file in a run                      | content                                                  |
|------------------------------------|----------------------------------------------------------|
| step-00000500/model.safetensors, … | the average, its configuration, processor and tokenizer: |
|                                    | what is deployed                                         |
| step-00000500/training.safetensors | raw weights, optimizer moments, RNG                      |
| step-00000500/training.json        | step, evaluations so far, loss tokens of each source     |
| best -> step-…                     | the checkpoint that the gate chose                       |
"""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from vla.errors import InputError
from vla.model import VLA
from vla.processor import Processor
from vla.robot_spec import check_same
from vla.training.optimizer import Ema, Optimizers


@dataclass
class Progress:
    """How far a run has come."""

    step: int = 0
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    tokens: dict[str, int] = field(default_factory=dict)
    """How many tokens of each source have borne a loss."""


def save(run: Path, progress: Progress, model: VLA, ema: Ema, optimizer: Optimizers) -> Path:
    """Writes `run/step-…`, visible only when whole, and drops older ones that are not the best."""
    final, partial = run / f"step-{progress.step:08d}", run / ".partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    tensors = {f"weight/{n}": p.detach() for n, p in model.named_parameters()}
    tensors |= {f"optimizer/{key}": value for key, value in optimizer.state().items()}
    tensors["rng"] = torch.get_rng_state()
    save_file({k: v.contiguous() for k, v in tensors.items()}, partial / "training.safetensors")
    (partial / "training.json").write_text(json.dumps(asdict(progress)))
    ema.swap(model)
    model.save(partial)
    ema.swap(model)
    shutil.rmtree(final, ignore_errors=True)
    os.replace(partial, final)
    best = (run / "best").resolve()
    for old in run.glob("step-*"):
        if old not in (final, best) and old.resolve() != best:
            shutil.rmtree(old)
    return final


def mark_best(run: Path, checkpoint: Path) -> None:
    """Points `run/best` at `checkpoint`, atomically."""
    link = run / ".best"
    link.unlink(missing_ok=True)
    link.symlink_to(checkpoint.name)
    os.replace(link, run / "best")


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def latest(run: Path) -> Path | None:
    found = sorted(run.glob("step-*"))
    return found[-1] if found else None


def restore(checkpoint: Path, model: VLA, ema: Ema, optimizer: Optimizers) -> Progress:
    """Loads everything into freshly built objects.

    Raises InputError when the checkpoint is of another model, of other data (it names the component whose statistics
    differ) or of other frozen parts.
    """
    saved_processor = Processor.load(checkpoint)
    try:
        check_same(saved_processor.robots, model.processor.robots)
    except InputError as error:
        raise InputError(
            f"{checkpoint} was trained on other demonstrations: {error}; train into another folder"
        ) from None
    if saved_processor.tokenizer.to_str() != model.processor.tokenizer.to_str():
        raise InputError(f"{checkpoint} has another tokenizer: train into another folder")
    ours, theirs = ([p.state_as, p.head and p.head.settings] for p in (saved_processor, model.processor))
    if ours != theirs:
        raise InputError(f"{checkpoint} has another action head or state_as: train into another folder")
    tensors = load_file(checkpoint / "training.safetensors")
    values = json.loads((checkpoint / "training.json").read_text())
    names = dict(model.named_parameters())
    with torch.no_grad():
        averages = load_file(checkpoint / "model.safetensors")
        for name, parameter in names.items():
            saved = tensors.get(f"weight/{name}")
            if saved is None or saved.shape != parameter.shape:
                raise InputError(f"{checkpoint} is of another model ({name} differs): train into another folder")
            parameter.copy_(saved)
            ema.weights[name] = averages[name].clone()
    try:
        moments = {k.removeprefix("optimizer/"): v for k, v in tensors.items() if k.startswith("optimizer/")}
        optimizer.load_state(moments)
    except InputError as error:
        raise InputError(f"cannot go on from {checkpoint}, {error}: train into another folder") from None
    torch.set_rng_state(tensors["rng"])
    return Progress(**values)
