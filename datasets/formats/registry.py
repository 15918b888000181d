"""The formats of episodes by name, and which of them a path is in."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from vla.datasets.formats import vqa_import
from vla.datasets.formats.source import EpisodeSource
from vla.errors import InputError

FORMATS = {
    "vla": "vla.datasets.formats.vla_store",
    "lerobot-v2.1": "vla.datasets.formats.lerobot_v21",
    "lerobot": "vla.datasets.formats.lerobot_v3",
    "hdf5": "vla.datasets.formats.hdf5",
    "diffusion-policy": "vla.datasets.formats.diffusion_policy",
    "rlds": "vla.datasets.formats.rlds",
}
"""The module of each format of episodes, in the order in which they are tried."""
HDF5 = ("robomimic", "libero", "aloha")
"""What HDF5 files are called by; the module tells their layouts apart."""


def find_format(src: str, format: str) -> str:
    """The name of the source's format. Raises InputError when there is nothing at `src`, or nothing that we know."""
    known = (*FORMATS, *HDF5, *vqa_import.FORMATS)
    if format in HDF5:
        return "hdf5"
    if format in known:
        return format
    if format != "auto":
        raise InputError(f"there is no format {format!r}: choose auto or {', '.join(known)}")
    if "://" in src:
        return "vla"
    path = Path(src)
    for name, module in FORMATS.items():
        if import_module(module).detect(path):
            return name
    found = vqa_import.detect(path)
    if found is None:
        reason = "nothing is there" if not path.exists() else f"it is in none of the formats {', '.join(known)}"
        raise InputError(f"cannot read {src}: {reason}")
    return found


def open_episodes(src: str) -> EpisodeSource:
    """What is at `src`, in whatever format. Raises InputError when these are no episodes, or cannot be read."""
    name = find_format(src, "auto")
    if name not in FORMATS:
        raise InputError(f"{src} holds questions ({name}), not episodes")
    source: EpisodeSource = import_module(FORMATS[name]).open_source(src if "://" in src else Path(src))
    return source
