"""Atomic checkpoints with bit-identical resumption, in safetensors and JSON (no pickle).

| file in a run                      | content                                                            |
|------------------------------------|--------------------------------------------------------------------|
| step-00000500/model.safetensors, … | the averaged weights, configuration, processor and tokenizer: what |
|                                    | is deployed                                                        |
| step-00000500/training/            | raw weights, averaged weights and optimizer moments by parameter   |
|                                    | name; one file per rank, readable by any number of ranks           |
| step-00000500/training.json        | step, evaluations, loss tokens of each source, settings, the       |
|                                    | optimizer of each parameter                                        |
| best -> step-…                     | the checkpoint that the gate selected                              |

Other folders in a run (for example step-00000500-keep) are neither resumed from nor removed.
"""

from __future__ import annotations

import filecmp
import json
import os
import re
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.api import CheckpointException

from vla.common.renamed_keys import current_weight
from vla.errors import InputError
from vla.models.processor import Processor
from vla.models.robot_spec import check_same
from vla.training.distributed import DistributedContext, full_weights
from vla.training.lora import merged
from vla.training.resumption import changed_rows, changes
from vla.training.state import Progress, TrainState

TRAINING = "training"
AGAIN = "and the run resumes from the previous checkpoint, or from the start"
STEP = re.compile(r"step-(\d{8,})")


def save(state: TrainState) -> Path:
    """Writes `run/step-…` atomically, and removes older checkpoints except the best. All ranks call it."""
    run, progress, world = state.run, state.progress, state.world
    final, partial = run / f"step-{progress.step:08d}", run / ".partial"
    if world.first:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
    world.barrier()
    with _no_distributed_warning():
        writer = HuggingFaceStorageWriter(str(partial / TRAINING), save_distributed=True)
        try:
            dcp.save(_tensors(state), storage_writer=writer)
        except CheckpointException as error:  # not an Exception, and its message omits the cause
            shutil.rmtree(partial, ignore_errors=True)  # a full disk needs the space
            raise next(iter(error.failures.values()))[0] from error
    with state.ema.applied(state.model):
        weights = full_weights(state.model, keep=world.first)
        if world.first:
            state.model.save(partial, merged(state.model, weights))
    if world.first:
        (partial / "training.json").write_text(json.dumps(asdict(progress) | {"trained": state.optimizer.kinds}))
        shutil.rmtree(final, ignore_errors=True)
        os.replace(partial, final)
        for old in checkpoints(run):
            if old not in (final, best(run)):
                shutil.rmtree(old)
    world.barrier()
    return final


def mark_best(run: Path, checkpoint: Path) -> None:
    """Points `run/best` at `checkpoint`, atomically."""
    link = run / ".best"
    link.unlink(missing_ok=True)
    link.symlink_to(checkpoint.name)
    os.replace(link, run / "best")


def best(run: Path) -> Path | None:
    """The checkpoint that `run/best` links to, or None."""
    link = run / "best"
    target = run / os.path.basename(os.readlink(link)) if link.is_symlink() else None
    return target if target in checkpoints(run) else None


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def checkpoints(run: Path) -> list[Path]:
    """The checkpoints of a run by step, ignoring folders whose name does not match exactly."""
    found = [folder for folder in run.glob("step-*") if STEP.fullmatch(folder.name) and folder.is_dir()]
    return sorted(found, key=step_of)


def latest(run: Path) -> Path | None:
    found = checkpoints(run)
    return found[-1] if found else None


def newest(run: Path, world: DistributedContext) -> Path | None:
    """The newest checkpoint of a run to resume, or None. All ranks call it.

    In a run that was copied with links followed (`cp -rL`), `best` is a folder; it is replaced by a link.

    Raises:
        InputError: `best` is a folder with a checkpoint of another run.
    """
    if world.first and (run / "best").is_dir() and not (run / "best").is_symlink():
        _restore_link(run)
    world.barrier()
    return latest(run)


def _restore_link(run: Path) -> None:
    copy, weights = run / "best", "model.safetensors"
    if not (copy / weights).is_file():
        raise InputError(f"{copy} is not a checkpoint: move it out of the folder of the run")
    for candidate in checkpoints(run):
        if (candidate / weights).is_file() and filecmp.cmp(candidate / weights, copy / weights, shallow=False):
            shutil.rmtree(copy)
            return mark_best(run, candidate)
    step = run / f"step-{_training(copy)['step']:08d}"
    if step.exists():
        raise InputError(f"{copy} differs from the checkpoint {step}: move one of them out of the folder of the run")
    os.replace(copy, step)
    mark_best(run, step)


def _training(checkpoint: Path) -> dict[str, Any]:
    """The content of training.json. Raises InputError if it is missing or damaged."""
    try:
        values: dict[str, Any] = json.loads((checkpoint / "training.json").read_text())
        if not isinstance(values["step"], int):
            raise ValueError("its step is not a number")
        return values
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{checkpoint}/training.json is missing or damaged: remove {checkpoint}, {AGAIN}") from error


def resume(state: TrainState) -> Path | None:
    """Resumes a run from its newest checkpoint. All ranks call it.

    The first rank prints the step and the changed settings.

    Args:
        state: The state of a new run, whose settings the resumed run has.

    Returns:
        The checkpoint that was loaded; None for a new run.

    Raises:
        InputError: as `restore` and `newest`, and for a setting that must not change within a run
            (`vla.training.resumption`).
    """
    loaded = newest(state.run, state.world)
    if loaded is None:
        return None
    settings = state.progress.settings
    restore(state, loaded)
    changed = changes(loaded, state.progress.settings, settings)
    if state.world.first:
        suffix = f", with {', '.join(changed)}" if changed else ""
        print(f"{state.run} resumes from step {state.progress.step} of {state.plan.steps}{suffix}", flush=True)
    state.progress.settings = settings
    return loaded


def restore(state: TrainState, checkpoint: Path) -> None:
    """Loads a checkpoint into a new state; the number of ranks may differ. All ranks call it.

    Raises:
        InputError: the checkpoint is of another model, other data, other frozen parts or another optimizer, or its
            files are damaged.
    """
    model, ema, optimizer = state.model, state.ema, state.optimizer
    _check_data(state, checkpoint)
    if not any((checkpoint / TRAINING).glob("*.safetensors")):
        raise InputError(f"{checkpoint}/{TRAINING} is missing: it can only start a new run, as backbone={checkpoint}")
    reader = HuggingFaceStorageReader(str(checkpoint / TRAINING))
    with _readable(checkpoint):
        metadata = reader.read_metadata().state_dict_metadata
    stored_as = {_current(name): name for name in metadata}
    saved = {name: getattr(metadata[stored], "size", None) for name, stored in stored_as.items()}
    for name, parameter in model.named_parameters():
        if saved.get(f"weight/{name}") != parameter.shape:
            raise InputError(
                f"{checkpoint} is of another model or of other frozen parts ({name} differs): train into another folder"
            )
    values = _training(checkpoint)
    if {current_weight(name): kind for name, kind in values.pop("trained").items()} != optimizer.kinds:
        raise InputError(
            f"cannot resume from {checkpoint}: it was trained with other frozen parts or another optimizer; train into "
            "another folder"
        )
    optimizer.make_state(name.removeprefix("optimizer/") for name in saved if name.startswith("optimizer/"))
    tensors = {stored_as[name]: tensor for name, tensor in _tensors(state).items() if name in stored_as}
    with _no_distributed_warning(), _readable(checkpoint):
        dcp.load(tensors, storage_reader=reader)
    raw = dict(model.named_parameters())
    for name, average in ema.weights.items():
        if f"average/{name}" not in saved:  # the run had no average before
            average.copy_(raw[name].detach())
    state.progress = Progress(**values)


def _current(key: str) -> str:
    """The present key of a tensor that an earlier version stored."""
    kind, _, name = key.partition("/")
    return f"{kind}/{current_weight(name)}"


def _check_data(state: TrainState, checkpoint: Path) -> None:
    saved, processor = Processor.load(checkpoint), state.model.processor
    try:
        check_same(saved.robots, processor.robots)
    except InputError as error:
        sizes = changed_rows(_training(checkpoint).get("settings", {}), state.progress.settings)
        raise InputError(
            f"{checkpoint} was trained on other demonstrations: {error}{sizes}. Restore them, or continue with the new "
            f"ones in another folder: backbone={state.run} out=NEW"
        ) from None
    if [r.embodiment.cameras for r in saved.robots] != [r.embodiment.cameras for r in processor.robots]:
        raise InputError(f"{checkpoint} has the cameras in another order: train into another folder")
    if saved.tokenizer.to_str() != processor.tokenizer.to_str():
        raise InputError(f"{checkpoint} has another tokenizer: train into another folder")
    ours, theirs = ([p.state_encoding, p.head and p.head.settings] for p in (saved, processor))
    if ours != theirs:
        raise InputError(f"{checkpoint} has another action head or state_encoding: train into another folder")


def _tensors(state: TrainState) -> dict[str, Tensor]:
    """The tensors that a resumed run needs, without copying."""
    return (
        {f"weight/{name}": parameter.detach() for name, parameter in state.model.named_parameters()}
        | {f"average/{name}": value for name, value in state.ema.weights.items()}
        | {f"optimizer/{name}": value for name, value in state.optimizer.state().items()}
    )


@contextmanager
def _readable(checkpoint: Path) -> Iterator[None]:
    """Raises InputError for a truncated or damaged file; the libraries raise many types of exceptions."""
    try:
        yield
    except (Exception, CheckpointException) as error:
        raise InputError(f"{checkpoint}/{TRAINING} is damaged: remove {checkpoint}, {AGAIN} ({error})") from error


@contextmanager
def _no_distributed_warning() -> Iterator[None]:
    """Suppresses torch's warning about a single process."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninitialized")
        yield
