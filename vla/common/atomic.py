"""Atomic replacement of files and folders: readers see the old content or the new, never a part."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def atomic_replace(path: Path) -> Iterator[Path]:
    """Yields a temporary path in the same folder, which replaces `path` when the block ends without an exception.

    The temporary path has the suffix of `path`. Remains of an earlier process or of an exception are removed. A folder
    can only replace an empty folder, or one that does not exist.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.partial{path.suffix}")
    _remove(partial)
    try:
        yield partial
        os.replace(partial, path)
    finally:
        _remove(partial)


def write_json(path: Path, values: Any) -> None:
    """Replaces `path` with `values` as JSON, indented by one space."""
    with atomic_replace(path) as partial:
        partial.write_text(json.dumps(values, indent=1))


def backup_of(path: Path) -> Path:
    """Where a store is for a moment while another takes its place; after a kill, the next edit moves it back."""
    return path.with_name(f".{path.name}.old")


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
