"""Import of a VQA dataset into a VQA store: one item per image, with all questions about it.

The import makes two passes over the source, each in constant memory. The first hashes the encoded images and collects
the questions about each in an index on disk (`vqa_index`). The second decodes each image once, at its first entry, and
writes its item. An image is thus recognized however far apart its entries are. An image that is encoded in two ways
results in two items, which `VqaStore.split` still puts on the same side, since it depends on the pixels.

| entries about one image                    | result                                                                 |
|--------------------------------------------|------------------------------------------------------------------------|
| a repeated question with the same answer   | dropped and counted                                                    |
| a repeated question with another answer    | kept and counted: annotators disagree                                  |
| conversations                              | kept or dropped as a unit, one after another in the item               |

Until it is complete, the store is in the hidden folder .<name>.import next to its destination. An interrupted import
is resumed from there, and loses at most the current batch.
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
"""The attribute of the store's group with the report."""
INDEX_BATCH = 1024
"""Entries per commit of the index."""
STORE_BATCH = 256
"""Maximum number of items per append: the items of a shard."""
STORE_BATCH_BYTES = 2**27
"""Maximum size of the decoded images per append."""


def _format(name: str) -> Any:
    """The module of a format, a `VqaFormat`."""
    return import_module(VQA_FORMATS[name])


def import_vqa(
    src: Path, dst: Path, format: str | None = None, images: Path | None = None, size: int = 224, codec: str = "zstd"
) -> None:
    """Imports `src` into the new VQA store `dst`, and prints the report, which the store keeps.

    Args:
        src: the data.
        dst: the path of the store.
        format: one of `VQA_FORMATS`. None: detect it.
        images: the folder of images that the data name by path.
        size: the maximum side length of the images [px]; larger images are reduced.
        codec: the image codec of the store.

    Raises:
        InputError: `dst` exists, `src` is not in the format or its index cannot be read, an option is invalid, or no
            entry is usable (nothing is written then); or another import into `dst` is unfinished.
    """
    if dst.exists():
        raise InputError(f"{dst} exists: choose another folder, or remove it first")
    if dst.parts[:1] and dst.parts[0].endswith(":"):
        raise InputError(f"{dst}: a VQA dataset is imported into a local folder: import there, and copy it")
    name = format or detect_vqa(src)
    formats = f"the VQA formats are {', '.join(VQA_FORMATS)}"
    if name is None:
        raise InputError(f"the VQA format of {src} cannot be detected; {formats}: set format=… to get the exact error")
    if name not in VQA_FORMATS:
        raise InputError(f"{name} is not known: {formats}")
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
    """Runs both passes, or the remainder of them. Returns the report."""
    # The store is created first, since this also checks the codec.
    store = VqaStore(path) if path.exists() else VqaStore.create(path, (MAIN_CAMERA,), size, size, codec, smaller=True)
    if not index.complete:
        _fill_index(source, index)
    report = index.report(_write(source, index, store, size))
    if not len(store):
        raise InputError(f"no entry of the source is usable: {json.dumps(report['rejected'] or 'it has none')}")
    return report


def _fingerprints(source: VqaSource) -> list[list[Any]]:
    """The sizes and times of the files, to detect a source that changed before an import is resumed."""
    stats = [(file, file.stat()) for file in source.files]
    return [[str(file.absolute()), stat.st_size, stat.st_mtime_ns] for file, stat in stats]


def _fill_index(source: VqaSource, index: VqaIndex) -> None:
    done, position = index.entries, -1
    for position, entry in enumerate(tqdm(source.entries(), "index", unit=" entries", disable=None)):
        if position < done:
            continue
        try:
            if isinstance(entry, Rejected):
                index.reject(position, entry)
            else:
                index.add(position, entry)
        except BadEntry as error:
            index.reject(position, Rejected(entry.name, error.reason, str(error)))
        if (position + 1) % INDEX_BATCH == 0:
            index.commit(position + 1)
    index.commit(position + 1, complete=True)


def _write(source: VqaSource, index: VqaIndex, store: VqaStore, size: int) -> Progress:
    """Appends the items that the store lacks, in the order of the first entries of their images."""
    progress = index.resume(len(store))
    items, images, questions, conflicting = progress.items, progress.images, progress.questions, progress.conflicts
    length = max(1, min(STORE_BATCH, STORE_BATCH_BYTES // (3 * size**2)))
    batch: list[VqaItem] = []
    with tqdm(total=index.count(), initial=images, desc="write", unit=" images", disable=None) as bar:
        for position, item in _items(source, index, images, size):
            images += 1
            bar.update()
            if isinstance(item, Rejected):
                index.reject(position, item, written=True)
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
    """The items of the images after the first `after` ones, or why there is none, with the image's first position."""
    entries = enumerate(source.entries())
    for first, questions in index.images(after):
        entry = next(entry for position, entry in entries if position == first)
        assert not isinstance(entry, Rejected)  # it was indexed, and the source has not changed
        try:
            yield first, VqaItem(decoded(entry, size), questions, entry.source)
        except BadEntry as error:
            yield first, Rejected(entry.name, error.reason, str(error))
