"""Stores that appear whole or not at all, and changed stores that take the place of the old one in one step.

Both are built in a hidden folder beside their place, `.NAME.partial`. A process that is killed leaves only that
folder, and the next one that works on NAME removes it.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vla.datasets.episodes import EpisodeStore
from vla.errors import InputError

AT_FDCWD, RENAME_EXCHANGE = -100, 2
"""Of Linux's <fcntl.h> and <stdio.h>."""


@contextmanager
def appearing(out: str) -> Iterator[Path]:
    """A path to build a folder at, which becomes `out` when the block ends without an exception.

    Raises InputError when something is at `out` already, or another process is making it.
    """
    path = local(out)
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise InputError(f"{out} exists: choose another folder, or remove it first")
    with _workshop(path) as new:
        yield new
        try:
            new.rename(path)
        except OSError as error:
            raise InputError(f"cannot create {out}: {error.strerror}") from error


@contextmanager
def changing(path: str) -> Iterator[tuple[EpisodeStore, Path]]:
    """The store at `path`, locked, and a path to build its successor at, which takes its place when the block ends.

    An exception leaves the old store as it is. Who has it open for reading must open it again afterwards.
    Raises InputError when there is no store at `path` or another process writes to it.
    """
    place = local(path)
    _recover(place)
    with EpisodeStore.open(place, "a") as old, _workshop(place) as new:
        yield old, new
        _exchange(new, place)


def local(path: str) -> Path:
    """Raises InputError when `path` is no folder of this machine."""
    if "://" in path:
        place = path.rpartition("@")[2].partition("?")[0]  # what is left out may be credentials
        raise InputError(f"{place}: only a folder on this machine can be made or replaced whole; copy it from there")
    # A link is followed: the folder behind it is what is replaced.
    return Path(path).resolve()


@contextmanager
def _workshop(path: Path) -> Iterator[Path]:
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
        raise InputError(f"another process is making {path}: wait for it") from None


def _exchange(new: Path, old: Path) -> None:
    """Swaps two folders: in one step on Linux, elsewhere in two, between which the old one is at `_aside(old)`."""
    if _renameat2(new, old):
        return
    aside = _set_aside(old)
    try:
        new.rename(old)
    except OSError:
        aside.rename(old)
        raise
    aside.rename(new)


def _renameat2(new: Path, old: Path) -> bool:
    """Whether the kernel and the file system could swap the two."""
    function = getattr(ctypes.CDLL(None), "renameat2", None)
    if function is None:
        return False
    return bool(function(AT_FDCWD, os.fsencode(new), AT_FDCWD, os.fsencode(old), RENAME_EXCHANGE) == 0)


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


def _set_aside(path: Path) -> Path:
    return path.rename(_aside(path))


def _recover(path: Path) -> None:
    """Finishes a swap in two steps that was cut off."""
    aside = _aside(path)
    if aside.exists() and path.exists():
        shutil.rmtree(aside)
    elif aside.exists():
        aside.rename(path)
