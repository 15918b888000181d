"""The kind of a store: episodes or visual questions."""

from __future__ import annotations

from vla.datasets.format_registry import no_store
from vla.datasets.open_folder import open_folder
from vla.datasets.source_files import decode_json
from vla.errors import InputError


def format_of(path: str) -> str:
    """The format that the store at `path` declares, "" if it declares none.

    Raises:
        InputError: There is no store at `path`, or its metadata cannot be read.
    """
    folder = open_folder(path)
    if not folder.exists("zarr.json"):
        raise no_store(folder)
    file = folder.open("zarr.json")
    content = decode_json(bytes(file.ranges([0], [file.size])[0]), f"{folder}/zarr.json")
    try:
        return str(content["attributes"].get("format", ""))
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{folder}/zarr.json is damaged ({error}): restore it from a copy") from error
