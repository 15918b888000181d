"""Experiment tracking beside TensorBoard: Weights & Biases, or trackio, which has the same functions."""

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
    """Raises InputError for a tracker that there is not, or whose package is not installed."""
    if name is not None and name not in TRACKERS:
        raise InputError(f"there is no log {name}: choose of {', '.join(TRACKERS)}; TensorBoard is always written")
    if name is not None and find_spec(name) is None:
        raise InputError(f"log={name} needs a package that is not installed: uv pip install {name}")


class Tracker:
    """A run that is being tracked."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        self._module.log(dict(values), step=step)


@contextmanager
def tracked(name: str | None, run: Path, config: Mapping[str, Any]) -> Iterator[Tracker | None]:
    """The tracker `name` (None: none) of the run in the folder `run`, which goes on where it was tracked before.

    Where it writes and whom it tells is its own affair: WANDB_MODE=offline keeps all in the folder of the run.
    Raises InputError where it cannot be started.
    """
    check_tracker(name)
    if name is None:
        yield None
        return
    module = import_module(name)
    told: dict[str, Any] = {"project": PROJECT, "name": run.name, "config": dict(config), "resume": "allow"}
    if name == "wandb":
        told |= {"dir": str(run), "id": hashlib.sha256(str(run.resolve()).encode()).hexdigest()[:16]}
    try:
        module.init(**told)
    except Exception as error:  # of many kinds, and never a reason for a traceback
        reason = " ".join(str(error).split())
        raise InputError(f"log={name} cannot be started: {reason}; WANDB_MODE=offline needs no account") from error
    try:
        yield Tracker(module)
    finally:
        module.finish()
