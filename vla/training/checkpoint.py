"""Checkpoints that are whole or absent, and resume to the bit. No pickle: safetensors and JSON.

    <run>/step-00000500/     model.safetensors (the average), config, processor, tokenizer: what is deployed
        training.safetensors raw weights, optimizer moments, RNG: what training goes on from
        training.json        step, evaluations so far
    <run>/best -> step-…     the checkpoint that the gate chose
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from vla.errors import InputError
from vla.model import VLA
from vla.training.optimizer import Ema


def save(
    run: Path, step: int, model: VLA, ema: Ema, optimizer: torch.optim.Optimizer, evaluations: list[dict[str, Any]]
) -> Path:
    """Writes `run/step-…`, visible only when whole, and drops older ones that are not the best."""
    final, partial = run / f"step-{step:08d}", run / ".partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    tensors = {f"weight/{n}": p.detach() for n, p in model.named_parameters()}
    tensors |= {f"optimizer/{i}/{k}": v for i, s in optimizer.state_dict()["state"].items() for k, v in s.items()}
    tensors["rng"] = torch.get_rng_state()
    save_file({k: v.contiguous() for k, v in tensors.items()}, partial / "training.safetensors")
    (partial / "training.json").write_text(json.dumps({"step": step, "evaluations": evaluations}))
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


def latest(run: Path) -> Path | None:
    found = sorted(run.glob("step-*"))
    return found[-1] if found else None


def restore(
    checkpoint: Path, model: VLA, ema: Ema, optimizer: torch.optim.Optimizer
) -> tuple[int, list[dict[str, Any]]]:
    """Loads everything into freshly built objects; returns the step and the evaluations so far.

    Raises InputError when the checkpoint is of another model or of other frozen parts.
    """
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
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith("optimizer/"):
            _, index, name = key.split("/")
            state.setdefault(int(index), {})[name] = tensor
    groups = optimizer.state_dict()["param_groups"]
    if len(state) != sum(len(g["params"]) for g in groups):
        raise InputError(f"{checkpoint} was trained with other frozen parts: train into another folder")
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    torch.set_rng_state(tensors["rng"])
    return values["step"], values["evaluations"]
