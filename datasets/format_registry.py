"""The supported formats by name, and their detection."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla.datasets.source_files import SHOWN, check_fetched
from vla.errors import InputError, suggestion

if TYPE_CHECKING:
    from vla.datasets.episode_source import EpisodeSource
    from vla.datasets.folder import Folder

FORMATS = {
    "vla": "vla.datasets.formats.vla_store",
    "lerobot-v2.1": "vla.datasets.formats.lerobot_v21",
    "lerobot": "vla.datasets.formats.lerobot_v3",
    "hdf5": "vla.datasets.formats.hdf5",
    **dict.fromkeys(("robomimic", "libero", "aloha"), "vla.datasets.formats.hdf5"),
    "diffusion-policy": "vla.datasets.formats.diffusion_policy",
    "rlds": "vla.datasets.formats.rlds",
}
"""The module of each episode format, in the order of detection. HDF5 files have several layouts."""
EASY_VQA = "easy-vqa"
"""The name of the questions in a package, which is also that of their source."""
VQA_FORMATS = {
    "llava": "vla.datasets.formats.llava",
    "vqav2": "vla.datasets.formats.vqav2",
    EASY_VQA: "vla.datasets.formats.easy_vqa_package",
    "parquet": "vla.datasets.formats.hf_parquet",
    "webdataset": "vla.datasets.formats.webdataset_tar",
}
"""The module of each VQA format, in the order of detection."""
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
"""A dataset on the Hugging Face hub: USER/NAME, both of which may contain dots."""
DATA_SUFFIXES = re.compile(
    r"\.(zarr|zip|hdf5?|h5|jsonl?|parquet|arrow|tar|t?gz|tfrecord|mp4|rrd|csv|np[yz]|bag|mcap)", re.IGNORECASE
)
"""Suffixes of data files and folders, which names of datasets on the hub do not have."""


def find_format(src: str, format: str) -> str:
    """The name of the source's format. Raises InputError if there is nothing at `src`, or the format is unknown."""
    formats = (*FORMATS, *VQA_FORMATS)
    if format not in ("auto", *formats):
        raise InputError(
            f"there is no format {format!r}{suggestion(format, formats)}: choose auto or {', '.join(formats)}"
        )
    path = Path(src)
    # Before the readers are imported, which takes seconds.
    if not ("://" in src or path.exists() or is_hub_name(src) or path.parts[:1] == (EASY_VQA,)):
        raise InputError(f"cannot read {src}: nothing is there{_similar_name(path)}")
    if format != "auto":
        return format
    if "://" in src:
        return "vla"
    check_fetched(path)
    detected = detect(path) or detect_vqa(path)
    if detected is None and path.exists():
        raise InputError(f"cannot read {src}: it is in none of the formats {', '.join(formats)}")
    return detected or "lerobot"


def detect(path: Path) -> str | None:
    """The name of the episode format of the data at `path`; None if it is not a known one."""
    return next((name for name, module in FORMATS.items() if import_module(module).detect(path)), None)


def detect_vqa(path: Path) -> str | None:
    """The name of the VQA format of the data at `path`, from their first entries; None if it is not a known one."""
    return next((name for name, module in VQA_FORMATS.items() if import_module(module).detect(path)), None)


def no_store(folder: Folder) -> InputError:
    """The error for a folder without zarr.json, which does not exist or contains other data."""
    if not folder.exists(""):
        return InputError(f"no episode store at {folder}: record one first (vla record)")
    command = conversion(str(folder))
    advice = f": convert it, {command}" if command else ": it has no zarr.json"
    return InputError(f"{folder} is not an episode store{advice}")


def conversion(src: str) -> str:
    """The command that converts the data at `src` into a store; empty if their format is unknown.

    Raises InputError if their metadata are damaged.
    """
    path = Path(src)
    if "://" in src or not (detect(path) or detect_vqa(path)):
        return ""
    name = path.resolve().name.partition(".")[0] or "converted"
    return f"`vla convert {shlex.quote(src)} {shlex.quote(f'outputs/{name}.zarr')}`"


def is_hub_name(src: str) -> bool:
    """Whether `src` has the form USER/NAME and no suffix of a data file."""
    return HUB_NAME.fullmatch(src) is not None and DATA_SUFFIXES.fullmatch(Path(src).suffix) is None


def open_format(name: str, src: str, options: Mapping[str, Any] | None = None) -> EpisodeSource:
    """Opens `src` as the format `name`, with options of the format's `open_source`.

    Raises InputError if it cannot be read.
    """
    open_source = import_module(FORMATS[name]).open_source
    try:
        source: EpisodeSource = open_source(src if "://" in src else Path(src), **(options or {}))
    except InputError:
        raise
    except Exception as error:  # third-party libraries raise almost any exception on damaged files
        reason = " ".join(str(error).split())[:SHOWN]
        raise InputError(
            f"{src} cannot be read as {name}, it may be damaged ({type(error).__name__}: {reason})"
        ) from error
    return source


def open_episodes(src: str) -> EpisodeSource:
    """Opens the episodes at `src` in any format. Raises InputError if there are none, or they cannot be read."""
    name = find_format(src, "auto")
    if name not in FORMATS:
        raise InputError(f"{src} holds questions ({name}), not episodes")
    return open_format(name, src)


def _similar_name(path: Path) -> str:
    """A hint at the most similar name in the folder, for typing errors."""
    from difflib import get_close_matches

    near = get_close_matches(path.name, [other.name for other in path.parent.glob("*")], n=1)
    return f" (is it {path.parent / near[0]}?)" if near else ""
