"""Where a path leads: a folder of this machine, or an object store."""

from __future__ import annotations

from pathlib import Path

from vla.datasets.folder import REMOTE, Folder, LocalFolder
from vla.errors import InputError


def open_folder(path: str | Path) -> Folder:
    """The folder at `path`, which need not exist. Raises InputError when the path holds credentials, and for an
    address of another kind."""
    if REMOTE.match(str(path)):
        from vla.datasets.object_folder import ObjectFolder  # obstore takes long to import

        return ObjectFolder(str(path))
    scheme, separator, _ = str(path).partition("://")
    if separator:  # the rest may hold credentials
        raise InputError(f"{scheme}:// is no address of a store: those are s3://, gs:// and az://")
    return LocalFolder(Path(path))
