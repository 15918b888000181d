"""Import of a VQA set into a VQA store: one item an image, with all questions that the set asks about it.

Two passes over the source, each in constant memory. The first hashes the encoded images and gathers the questions of
each in an index on disk (`vqa_index`); the second decodes each image once, where it is first, and writes its item.
So the same image is found however far apart its entries are. The same picture encoded twice is two items; these still
fall on one side of `VqaStore.split`, which goes by the pixels.

| of one image                               | becomes                                                                |
|--------------------------------------------|------------------------------------------------------------------------|
| a question with the same answer again      | dropped, and counted                                                   |
| a question with another answer             | kept, and counted: people disagree, and which is right is not ours      |
| conversations                              | each kept or dropped whole, one after the other in the item             |

Until it is whole, the store lies in the hidden folder .<name>.import beside its place. An import that was cut short
goes on from there, and loses the batch under way at most.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import zarr
from tqdm import tqdm

from vla.datasets.format_registry import VQA_FORMATS, detect_vqa
from vla.datasets.formats.vqa_entries import BadEntry, Rejected, VqaSource, decoded
from vla.datasets.formats.vqa_index import Progress, VqaIndex, conflicts
from vla.datasets.questions import MAIN_CAMERA
from vla.datasets.vqa import VqaItem, VqaStore
from vla.errors import InputError

REPORT = "import"
"""The attribute of the store's group that holds the report."""
INDEX_BATCH = 1024
"""Entries."""
STORE_BATCH = 256
"""Items, of which a shard of the store has as many."""
STORE_BATCH_BYTES = 2**27


def _format(name: str) -> Any:
    """The module of a format, a `VqaFormat`."""
    return import_module(VQA_FORMATS[name])


def import_vqa(
    src: Path, dst: Path, format: str | None = None, images: Path | None = None, size: int = 224, codec: str = "zstd"
) -> None:
    """Writes the VQA store `dst`, no side of its images longer than `size` px, and prints the report that it keeps.

    `format` is one of `VQA_FORMATS` (None: `detect_vqa` finds it), `images` the folder of images that the format names
    by path.

    Raises:
        InputError: `dst` exists, `src` is not in the format or its index cannot be read, an option is wrong, or no
            entry is of use; nothing is at `dst` then. Or an import of something else into `dst` is unfinished.
    """
    if dst.exists():
        raise InputError(f"{dst} exists: choose another folder, or remove it first")
    if dst.parts[:1] and dst.parts[0].endswith(":"):
        raise InputError(f"{dst}: a VQA set is imported into a local folder; copy that where it shall be")
    name = format or detect_vqa(src)
    known = f"the VQA formats are {', '.join(VQA_FORMATS)}"
    if name is None:
        raise InputError(f"{src} holds no VQA set that can be told by itself; {known}: name one to hear what is wrong")
    if name not in VQA_FORMATS:
        raise InputError(f"{name} is not known: {known}")
    if images is not None and not images.is_dir():
        raise InputError(f"there is no image folder {images}")
    if size < 1:
        raise InputError(f"the images' size must be 1 px or more, not {size}")
    source = _format(name).open_entries(src, images)
    settings: dict[str, Any] = {
        "format": name,
        "source": str(src.absolute()),
        "images": str((images or src).absolute()),
    }
    settings |= {"size": size, "shape": "own", "codec": codec, "files": _fingerprints(source)}

    work = dst.with_name(f".{dst.name}.import")
    dst.parent.mkdir(parents=True, exist_ok=True)
    try:
        work.mkdir()
        fresh = True
    except FileExistsError:
        fresh = False
    try:
        index = VqaIndex(work / "index.sqlite", settings)
        try:
            report = {"format": name, "source": str(src)} | _run(source, index, work / "store", size, codec)
        finally:
            index.close()
    except InputError:
        if fresh:
            shutil.rmtree(work)
        raise
    zarr.open_group(work / "store", mode="r+", zarr_format=3).update_attributes({REPORT: report})
    (work / "store").rename(dst)
    shutil.rmtree(work)
    print(json.dumps(report, indent=2, ensure_ascii=False))


def _run(source: VqaSource, index: VqaIndex, path: Path, size: int, codec: str) -> dict[str, Any]:
    """Both passes, or what is left of them. Returns the report."""
    # First, since it also checks the codec.
    store = VqaStore(path) if path.exists() else VqaStore.create(path, (MAIN_CAMERA,), size, size, codec, smaller=True)
    if not index.complete:
        _fill_index(source, index)
    report = index.report(_write(source, index, store, size))
    if not len(store):
        raise InputError(f"no entry of the source is of use: {json.dumps(report['rejected'] or 'it has none')}")
    return report


def _fingerprints(source: VqaSource) -> list[list[Any]]:
    """To tell a source that changed between two runs: an import half of each would be neither."""
    stats = [(file, file.stat()) for file in source.files]
    return [[str(file.absolute()), stat.st_size, stat.st_mtime_ns] for file, stat in stats]


def _fill_index(source: VqaSource, index: VqaIndex) -> None:
    done, place = index.entries, -1
    for place, entry in enumerate(tqdm(source.entries(), "index", unit=" entries", disable=None)):
        if place < done:
            continue
        try:
            if isinstance(entry, Rejected):
                index.reject(place, entry)
            else:
                index.add(place, entry)
        except BadEntry as error:
            index.reject(place, Rejected(entry.name, error.reason, str(error)))
        if (place + 1) % INDEX_BATCH == 0:
            index.commit(place + 1)
    index.commit(place + 1, complete=True)


def _write(source: VqaSource, index: VqaIndex, store: VqaStore, size: int) -> Progress:
    """Appends the items that the store lacks, in the order in which their images are first in the source."""
    progress = index.resume(len(store))
    items, images, questions, conflicting = progress.items, progress.images, progress.questions, progress.conflicts
    length = max(1, min(STORE_BATCH, STORE_BATCH_BYTES // (3 * size**2)))
    batch: list[VqaItem] = []
    with tqdm(total=index.count(), initial=images, desc="write", unit=" images", disable=None) as bar:
        for place, item in _items(source, index, images, size):
            images += 1
            bar.update()
            if isinstance(item, Rejected):
                index.reject(place, item, written=True)
            else:
                batch.append(item)
                items, questions = items + 1, questions + len(item.questions)
                conflicting += conflicts(item.questions)
            if len(batch) == length:
                index.begin_batch(Progress(items, images, questions, conflicting))
                store.append(batch)
                batch = []
    progress = Progress(items, images, questions, conflicting)
    index.begin_batch(progress)
    if batch:
        store.append(batch)
    return progress


def _items(source: VqaSource, index: VqaIndex, after: int, size: int) -> Iterator[tuple[int, VqaItem | Rejected]]:
    """The item of each image but the first `after`, or why there is none, with the place where the image is first."""
    entries = enumerate(source.entries())
    for first, questions in index.images(after):
        entry = next(entry for place, entry in entries if place == first)
        assert not isinstance(entry, Rejected)  # it was indexed, and the source is the same
        try:
            yield first, VqaItem(decoded(entry, size), questions, entry.source)
        except BadEntry as error:
            yield first, Rejected(entry.name, error.reason, str(error))
