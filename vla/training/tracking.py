"""Experiment tracking in addition to TensorBoard: Weights & Biases, or trackio, which has the same functions."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from vla.errors import InputError

TRACKERS = ("wandb", "trackio")
PROJECT = "vla"


def check_tracker(name: str | None) -> None:
    """Raises InputError if the tracker is unknown or its package is not installed."""
    if name is not None and name not in TRACKERS:
        raise InputError(f"there is no log {name}: choose of {', '.join(TRACKERS)}; TensorBoard is always written")
    if name is not None and find_spec(name) is None:
        raise InputError(f"log={name} needs a package that is not installed: uv pip install {name}")


class Tracker:
    """A tracked run."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self._module.log(dict(values), step=step)


@contextmanager
def tracked(name: str | None, run: Path, config: Mapping[str, Any]) -> Iterator[Tracker | None]:
    """Starts or resumes the tracking of the run in the folder `run`; no tracking if `name` is None.

    The tracker's own settings determine where it writes: WANDB_MODE=offline keeps everything in the folder of the run.

    Raises:
        InputError: the tracker cannot be started.
    """
    check_tracker(name)
    if name is None:
        yield None
        return
    module = import_module(name)
    settings: dict[str, Any] = {"project": PROJECT, "name": run.name, "config": dict(config), "resume": "allow"}
    if name == "wandb":
        settings |= {"dir": str(run), "id": hashlib.sha256(str(run.resolve()).encode()).hexdigest()[:16]}
    try:
        module.init(**settings)
    except Exception as error:  # trackers raise many types
        reason = " ".join(str(error).split())
        raise InputError(f"log={name} cannot be started: {reason}; WANDB_MODE=offline needs no account") from error
    try:
        yield Tracker(module)
    finally:
        module.finish()
