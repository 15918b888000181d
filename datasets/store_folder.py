"""A zarr store's folder: one writer at a time, and clear words when it is damaged."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import zarr

from vla.errors import InputError


def lock_folder(path: Path) -> int:
    """Locks the folder for this process, and removes what a killed writer left unfinished in it.

    The lock is held until the returned file descriptor is closed. Raises InputError when another has it.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise InputError(f"another process is writing to {path}: wait for it, or record to another store") from None
    for leftover in path.rglob("*.partial"):
        leftover.unlink()
    return descriptor


def array(group: zarr.Group, name: str) -> zarr.Array[Any]:
    """The array `name`, to read and to write. Raises KeyError when there is none, TypeError when it is a group."""
    found = group[name]
    if not isinstance(found, zarr.Array):
        raise TypeError(f"{name} is not an array")
    # All-zero chunks are written too, so that a missing one always means damage.
    return found.with_config({"write_empty_chunks": True})


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns what zarr raises over damaged files into an InputError that names `path`."""
    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise InputError(
            f"{path} is damaged or half-written ({error}): restore it from a copy or record again"
        ) from error
