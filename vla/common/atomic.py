"""Files and folders that are replaced in one step: readers find the old content or the new, never a part."""

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
    """Yields a path in the same folder to write at, which replaces `path` when the block ends without an exception.

    What an earlier process left at the yielded path is removed first, and so is what an exception leaves there. The
    suffix is that of `path`. A folder can only replace one that does not exist or is empty.
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


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
