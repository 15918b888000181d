"""The formats of episodes by name, and which of them a path is in."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from vla.datasets.episode_source import EpisodeSource
from vla.datasets.folder import Folder
from vla.datasets.source_files import SHOWN, check_fetched
from vla.errors import InputError

FORMATS = {
    "vla": "vla.datasets.formats.vla_store",
    "lerobot-v2.1": "vla.datasets.formats.lerobot_v21",
    "lerobot": "vla.datasets.formats.lerobot_v3",
    "hdf5": "vla.datasets.formats.hdf5",
    **dict.fromkeys(("robomimic", "libero", "aloha"), "vla.datasets.formats.hdf5"),
    "diffusion-policy": "vla.datasets.formats.diffusion_policy",
    "rlds": "vla.datasets.formats.rlds",
}
"""The module of each format of episodes, in the order in which they are tried. HDF5 files have several layouts."""
VQA_FORMATS = {
    "llava": "vla.datasets.formats.llava",
    "vqav2": "vla.datasets.formats.vqav2",
    "easy-vqa": "vla.datasets.formats.easy_vqa_package",
    "parquet": "vla.datasets.formats.hf_parquet",
    "webdataset": "vla.datasets.formats.webdataset_tar",
}
"""The module of each format of visual questions, in the order in which they are tried."""
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
"""A dataset of the hub: USER/NAME, both of which may have dots."""
DATA_SUFFIXES = re.compile(
    r"\.(zarr|zip|hdf5?|h5|jsonl?|parquet|arrow|tar|t?gz|tfrecord|mp4|rrd|csv|np[yz]|bag|mcap)", re.IGNORECASE
)
"""How the names of files and folders of data end, and those of datasets on the hub do not."""


def find_format(src: str, format: str) -> str:
    """The name of the source's format. Raises InputError when there is nothing at `src`, or nothing that we know."""
    known = (*FORMATS, *VQA_FORMATS)
    if format in known:
        return format
    if format != "auto":
        raise InputError(f"there is no format {format!r}: choose auto or {', '.join(known)}")
    if "://" in src:
        return "vla"
    path = Path(src)
    check_fetched(path)
    found = detect(path) or detect_vqa(path)
    if found is None and path.exists():
        raise InputError(f"cannot read {src}: it is in none of the formats {', '.join(known)}")
    if found is None and is_hub_name(src):
        return "lerobot"
    if found is None:
        raise InputError(f"cannot read {src}: nothing is there{_beside(path)}")
    return found


def detect(path: Path) -> str | None:
    """The name of the format of episodes that is at `path`; None where there is none of those we know."""
    return next((name for name, module in FORMATS.items() if import_module(module).detect(path)), None)


def detect_vqa(path: Path) -> str | None:
    """The name of the format of visual questions that is at `path`, by its beginning; None where there is none."""
    return next((name for name, module in VQA_FORMATS.items() if import_module(module).detect(path)), None)


def no_store(folder: Folder) -> InputError:
    """Why no store can be opened at `folder`, which has no zarr.json: nothing is there, or data in another format."""
    if not folder.exists(""):
        return InputError(f"no episode store at {folder}: record one first (vla record)")
    command = conversion(str(folder))
    advice = f": convert it, {command}" if command else ": it has no zarr.json"
    return InputError(f"{folder} is not an episode store{advice}")


def conversion(src: str) -> str:
    """The command that makes a store of the data at `src`; empty where these are in no format that we know.

    Raises InputError where they are in one, and its metadata are damaged.
    """
    path = Path(src)
    if "://" in src or not (detect(path) or detect_vqa(path)):
        return ""
    name = path.resolve().name.partition(".")[0] or "converted"
    return f"`vla convert {shlex.quote(src)} {shlex.quote(f'outputs/{name}.zarr')}`"


def is_hub_name(src: str) -> bool:
    """Whether `src` looks like USER/NAME, and not like the path of a file or folder of data."""
    return HUB_NAME.fullmatch(src) is not None and DATA_SUFFIXES.fullmatch(Path(src).suffix) is None


def open_format(name: str, src: str, options: Mapping[str, Any] | None = None) -> EpisodeSource:
    """What is at `src`, which is in the format `name`; `options` are those of the format's `open_source`.

    Raises InputError when it cannot be read.
    """
    open_source = import_module(FORMATS[name]).open_source
    try:
        source: EpisodeSource = open_source(src if "://" in src else Path(src), **(options or {}))
    except InputError:
        raise
    except Exception as error:  # the libraries behind raise nearly anything over damaged files
        reason = " ".join(str(error).split())[:SHOWN]
        raise InputError(
            f"{src} cannot be read as {name}, it may be damaged ({type(error).__name__}: {reason})"
        ) from error
    return source


def open_episodes(src: str) -> EpisodeSource:
    """What is at `src`, in whatever format. Raises InputError when these are no episodes, or cannot be read."""
    name = find_format(src, "auto")
    if name not in FORMATS:
        raise InputError(f"{src} holds questions ({name}), not episodes")
    return open_format(name, src)


def _beside(path: Path) -> str:
    """What there is in the folder where nothing was found, for who mistyped the name."""
    from difflib import get_close_matches

    near = get_close_matches(path.name, [other.name for other in path.parent.glob("*")], n=1)
    return f" (is it {path.parent / near[0]}?)" if near else ""
