"""Which kind of store lies at a path."""

from __future__ import annotations

import json

from vla.datasets.folder import open_folder
from vla.errors import InputError


def format_of(path: str) -> str:
    """The format that the store at `path` says it has, "" where it says none.

    Raises InputError when there is no store at `path`, or its metadata cannot be read.
    """
    folder = open_folder(path)
    if not folder.exists("zarr.json"):
        raise InputError(f"no episode store at {folder}, and none of visual questions: record one first (vla record)")
    file = folder.open("zarr.json")
    try:
        return str(json.loads(bytes(file.ranges([0], [file.size])[0]))["attributes"].get("format", ""))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{folder}/zarr.json is damaged ({error}): restore it from a copy") from error
