"""Opens a path as a local folder or as an object store."""

from __future__ import annotations

from pathlib import Path

from vla.datasets.folder import REMOTE, Folder, LocalFolder
from vla.errors import InputError


def open_folder(path: str | Path) -> Folder:
    """The folder at `path`, which need not exist.

    Raises:
        InputError: the path contains credentials, or is an address of an unsupported kind.
    """
    if REMOTE.match(str(path)):
        from vla.datasets.object_folder import ObjectFolder  # obstore takes long to import

        return ObjectFolder(str(path))
    scheme, separator, _ = str(path).partition("://")
    if separator:  # the rest may hold credentials
        raise InputError(f"{scheme}:// is not supported as a store's address: use s3://, gs:// or az://")
    return LocalFolder(Path(path))
