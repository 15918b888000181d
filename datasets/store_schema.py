"""The schema of an episode store: its format name, its version, and the creation of an empty store."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import zarr
from zarr.storage import MemoryStore

from vla.datasets.codecs import codec as find_codec
from vla.datasets.episode_checks import check_names
from vla.datasets.episode_layout import create_layout
from vla.datasets.folder import Folder, reading
from vla.datasets.shards import create_rows
from vla.datasets.text_chunks import create_texts
from vla.embodiment import Embodiment
from vla.errors import InputError

FORMAT = "vla.episodes"
SCHEMA_VERSION = 2


def open_group(folder: Folder, mode: Literal["r", "r+"]) -> zarr.Group:
    """The group of the store in `folder`. Raises InputError if there is none, or if it has another version."""
    if not folder.exists("zarr.json"):
        from vla.datasets.format_registry import no_store  # avoids an import cycle

        raise no_store(folder)
    with reading(f"{folder}/zarr.json"):
        group = zarr.open_group(folder.zarr(), mode=mode, zarr_format=3)
        attributes = dict(group.attrs)
    if attributes.get("format") != FORMAT:
        raise InputError(f"{folder} is a zarr group but not an episode store: its format is not {FORMAT!r}")
    version = attributes.get("schema_version")
    if version != SCHEMA_VERSION:
        older = isinstance(version, int) and version < SCHEMA_VERSION
        advice = f"vla convert {folder} NEW.zarr" if older else "install a newer vla"
        raise InputError(f"{folder} has schema version {version}, this program reads {SCHEMA_VERSION}: {advice}")
    return group


def create_group(folder: Folder, embodiment: Embodiment, codec: str, provenance: Mapping[str, Any]) -> None:
    """Creates an empty store in `folder`. Raises InputError if the arguments are invalid or the folder exists."""
    find_codec(codec)
    check_names("a camera", embodiment.cameras)
    files: dict[str, Any] = {}
    group = zarr.create_group(
        MemoryStore(files),
        attributes={
            "format": FORMAT,
            "schema_version": SCHEMA_VERSION,
            "embodiment": embodiment.to_dict(),
            "codec": codec,
            "provenance": dict(provenance),
            "index": "episodes",
        },
    )
    for name, width in (("state", len(embodiment.state)), ("action", len(embodiment.action)), ("time", None)):
        if width == 0:
            raise InputError(f"embodiment {embodiment.name} has no {name}: a store needs at least one component")
        create_rows(group, name, () if width is None else (width,), np.dtype("<f8"))
    create_layout(group)
    create_texts(group, "episodes")
    folder.publish({name: buffer.to_bytes() for name, buffer in files.items()})
