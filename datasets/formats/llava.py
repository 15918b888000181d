r"""Reader of LLaVA's visual instruction data: a JSON list of conversations and a folder of images.

    [{"id": "…", "image": "coco/000000033471.jpg", "conversations": [
        {"from": "human", "value": "<image>\nWhat are the colors of the bus?"},
        {"from": "gpt", "value": "White and red."}, …]}, …]

Source: Liu et al., "Visual Instruction Tuning", 2023: the format of llava_instruct_150k and llava_v1_5_mix665k.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from vla.datasets.formats.json_stream import read_list
from vla.datasets.formats.vqa_entries import (
    BadEntry,
    Rejected,
    VqaEntry,
    VqaSource,
    attempt,
    path_inside,
    read_items,
    turns,
)
from vla.datasets.vqa import VqaItem
from vla.errors import InputError

SOURCE = "llava"


def detect(path: Path) -> bool:
    """Whether the path is a JSON file with a list whose first entry is a conversation."""
    if path.suffix != ".json" or not path.is_file():
        return False
    try:
        first = next(read_list(path), None)
    except InputError:
        return False
    return isinstance(first, dict) and "conversations" in first


def open_entries(path: Path, images: Path | None) -> VqaSource:
    """The conversations of the file, with their images in `images` (None: the file's folder).

    Raises InputError if the file does not begin with such a list.
    """
    next(read_list(path), None)
    return VqaSource((path,), partial(_entries, path, images or path.parent))


def read_llava(
    json_path: str | Path, image_folder: str | Path, size: int, rejected: list[Rejected] | None = None
) -> Iterator[VqaItem]:
    """The entries as items, with images reduced to at most `size` px per side (`vla.common.images.reduced`).

    Each turn is a question of kind "conversation", which `VqaStore.examples` keeps together and in order. A
    conversation with one turn is a question of kind "open". Image tokens are removed. An entry without an image is a
    text-only item. Malformed entries and entries with unreadable images are skipped and added to `rejected`.

    Raises:
        InputError: the file is not a JSON list; or an entry is invalid and `rejected` is None.
    """
    return read_items(open_entries(Path(json_path), Path(image_folder)).entries(), size, rejected)


def _entries(path: Path, folder: Path) -> Iterator[VqaEntry | Rejected]:
    for position, entry in enumerate(read_list(path)):
        name = str(entry.get("id", position)) if isinstance(entry, dict) else str(position)
        yield attempt(name, partial(_entry, name, entry, folder))


def _entry(name: str, entry: Any, folder: Path) -> VqaEntry:
    if not isinstance(entry, dict):
        raise BadEntry("malformed entry", f"the entry is a {type(entry).__name__}, not an object")
    image = entry.get("image")
    questions = turns(entry.get("conversations"), image is not None)
    return VqaEntry(name, None if image is None else path_inside(folder, image), questions, SOURCE)
