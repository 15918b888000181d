"""Atomic creation and replacement of stores.

Both build the store in a hidden folder next to it, `.NAME.partial`. A killed process leaves only that folder, and the
next process that creates or replaces NAME removes it.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vla.common.atomic import backup_of
from vla.datasets.episodes import EpisodeStore
from vla.errors import InputError

AT_FDCWD, RENAME_EXCHANGE = -100, 2
"""Constants of Linux's <fcntl.h> and <stdio.h>."""


@contextmanager
def atomic_create(out: str) -> Iterator[Path]:
    """Yields a temporary path for a folder, which becomes `out` when the block ends without an exception.

    Raises:
        InputError: `out` exists already, or another process is creating it.
    """
    path = local(out)
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise InputError(f"{out} exists: choose another folder, or remove it first")
    with _temporary_folder(path) as new:
        yield new
        try:
            new.rename(path)
        except OSError as error:
            raise InputError(f"cannot create {out}: {error.strerror}") from error


@contextmanager
def atomic_replace_store(path: str) -> Iterator[tuple[EpisodeStore, Path]]:
    """Yields the locked store at `path`, and a temporary path for its replacement.

    The replacement takes effect when the block ends without an exception. Processes that have the store open for
    reading must reopen it.

    Raises:
        InputError: There is no store at `path`, or another process is writing to it.
    """
    folder = local(path)
    _recover(folder)
    with EpisodeStore.open(folder, "a") as old, _temporary_folder(folder) as new:
        yield old, new
        _exchange(new, folder)


def local(path: str) -> Path:
    """The resolved local path. Raises InputError if `path` is not on this machine."""
    if "://" in path:
        location = path.rpartition("@")[2].partition("?")[0]  # the rest may contain credentials
        raise InputError(f"{location}: only a local folder can be created or replaced atomically; copy it from there")
    # For a link, the target folder is replaced.
    return Path(path).resolve()


@contextmanager
def _temporary_folder(path: Path) -> Iterator[Path]:
    folder = path.with_name(f".{path.name}.partial")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot create {path}: {error.strerror}") from error
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _lock(descriptor, path)
        for leftover in folder.iterdir():
            shutil.rmtree(leftover)
        try:
            yield folder / path.name
        finally:
            shutil.rmtree(folder)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(f"another process is creating {path}: wait for it") from None


def _exchange(new: Path, old: Path) -> None:
    """Swaps two folders: atomically on Linux, otherwise in two steps, between which the old one is a backup."""
    if _renameat2(new, old):
        return
    backup = _move_to_backup(old)
    try:
        new.rename(old)
    except OSError:
        backup.rename(old)
        raise
    backup.rename(new)


def _renameat2(new: Path, old: Path) -> bool:
    """Swaps two folders atomically; returns whether the kernel and the file system support it."""
    function = getattr(ctypes.CDLL(None), "renameat2", None)
    if function is None:
        return False
    return bool(function(AT_FDCWD, os.fsencode(new), AT_FDCWD, os.fsencode(old), RENAME_EXCHANGE) == 0)


def _move_to_backup(path: Path) -> Path:
    return path.rename(backup_of(path))


def _recover(path: Path) -> None:
    """Completes or reverts an interrupted swap in two steps."""
    backup = backup_of(path)
    if backup.exists() and path.exists():
        shutil.rmtree(backup)
    elif backup.exists():
        backup.rename(path)
