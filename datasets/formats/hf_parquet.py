"""Reader of Hugging Face `datasets` folders: Parquet files with encoded images, or what `save_to_disk` wrote.

| column                  | content                                                                                |
|-------------------------|----------------------------------------------------------------------------------------|
| image, or images        | {bytes, path} or bytes; or a list with one of them (more: rejected; none: text only)    |
| question and answer     | texts                                                                                  |
| or conversations        | [{from: human, value}, {from: gpt, value}, …], as LLaVA has them                        |
| or texts                | [{user, assistant, …}, …], as the_cauldron has them                                     |
| id                      | optional: the name of a rejected row in the report                                      |

Rows are read in small batches, so that memory use is constant.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq

from vla.datasets.formats.data_files import folder_name, matching
from vla.datasets.formats.vqa_entries import (
    BadEntry,
    Rejected,
    VqaEntry,
    VqaSource,
    attempt,
    path_inside,
    single,
    turns,
)
from vla.datasets.source_files import reading_file
from vla.errors import InputError

IMAGES = ("image", "images")
TEXTS = ("texts", "conversations", "question")
SPLITS = frozenset({"train", "validation", "val", "dev", "test"})
ROWS = 32
"""Rows per batch, whose images are in memory together."""
BUFFER = 2**20
"""Bytes of a column per read. Otherwise, or with pre_buffer, Arrow reads and keeps complete row groups."""


def detect(path: Path) -> bool:
    """Whether the first data file at the path has columns of images and of questions."""
    try:
        files = _files(path)
        return bool(files) and _columns(files[0]) is not None
    except InputError:
        return False


def open_entries(path: Path, images: Path | None) -> VqaSource:
    """The rows of a file, of a folder's files, or of the files that match a pattern such as "data/train-*.parquet".

    `images` is the folder of images that are stored as paths (None: the files' folder).

    Raises:
        InputError: there is no data file; a file is damaged or lacks the columns; or the files are of several splits.
    """
    files = _files(path)
    if not files:
        raise InputError(f"{path}: there is no .parquet or .arrow file")
    splits = {_split(file, path) for file in files} & SPLITS
    if len(splits) > 1:
        raise InputError(
            f"{path} holds the splits {sorted(splits)}: name one, as its folder or {path}/**/train*.parquet"
        )
    for file in files:
        if _columns(file) is None:
            raise InputError(
                f"{file} has the columns {_schema(file).names}: one of {IMAGES} is needed, and 'question' and "
                "'answer', or 'conversations', or 'texts'"
            )
    return VqaSource(tuple(files), partial(_entries, files, path, images))


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(path.rglob("*.parquet")) or sorted(path.rglob("*.arrow"))
    if path.suffix not in (".parquet", ".arrow"):
        return []
    return matching(path)


def _split(file: Path, root: Path) -> str:
    """The split of a file: "train" for `data/train-00000-of-00002.parquet` and `train/data-00000.arrow`."""
    name = file.name.split("-")[0].split(".")[0]
    return name if name in SPLITS or file.parent == root else file.parent.name


def _columns(file: Path) -> list[str] | None:
    """The columns to read, that of images first; None if the file lacks them."""
    names = _schema(file).names
    image = next((name for name in IMAGES if name in names), None)
    text = next((name for name in TEXTS if name in names), None)
    if image is None or text is None or (text == "question" and "answer" not in names):
        return None
    return [image, text, *(["answer"] if text == "question" else []), *(["id"] if "id" in names else [])]


def _schema(file: Path) -> pa.Schema:
    with reading_file(file, file.suffix.removeprefix(".")):
        if file.suffix == ".parquet":
            return pq.read_schema(file)
        with pa.memory_map(str(file)) as mapped, pa.ipc.open_stream(mapped) as stream:
            return stream.schema


def _batches(file: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
    if file.suffix == ".parquet":
        with pq.ParquetFile(file, buffer_size=BUFFER, pre_buffer=False) as parquet:
            yield from parquet.iter_batches(ROWS, columns=columns, use_threads=False)
    else:
        with pa.memory_map(str(file)) as mapped, pa.ipc.open_stream(mapped) as stream:
            for batch in stream:
                selected = batch.select(columns)
                yield from (selected.slice(start, ROWS) for start in range(0, len(selected), ROWS))


def _entries(files: list[Path], root: Path, images: Path | None) -> Iterator[VqaEntry | Rejected]:
    for file in files:
        columns, position = _columns(file), 0
        assert columns  # checked when the source was opened
        with reading_file(file, file.suffix.removeprefix(".")):
            for batch in _batches(file, columns):
                for row in _rows(batch):
                    row_id = None if isinstance(row, UnicodeDecodeError) else row.get("id")
                    name = f"{file.name}:{position}" if row_id is None else str(row_id)
                    yield attempt(name, partial(_entry, name, row, columns, images or file.parent, folder_name(root)))
                    position += 1


def _rows(batch: pa.RecordBatch) -> Iterable[Mapping[str, Any] | UnicodeDecodeError]:
    try:
        return batch.to_pylist()
    except UnicodeDecodeError as error:  # one of the rows
        return [error] if len(batch) == 1 else [row for i in range(len(batch)) for row in _rows(batch.slice(i, 1))]


def _entry(
    name: str, row: Mapping[str, Any] | UnicodeDecodeError, columns: list[str], folder: Path, source: str
) -> VqaEntry:
    if isinstance(row, UnicodeDecodeError):
        raise BadEntry("not UTF-8", f"a text of the row is not UTF-8: {row}")
    image = _image(row[columns[0]], folder)
    value = row[columns[1]]
    if columns[1] == "question":
        if image is None:
            raise BadEntry("missing image", "the row has no image")
        questions = single(value, row["answer"])
    else:
        questions = turns(_messages(value) if columns[1] == "texts" else value, image is not None)
    return VqaEntry(name, image, questions, source)


def _image(value: Any, folder: Path) -> Path | bytes | None:
    if isinstance(value, list):
        if len(value) > 1:
            raise BadEntry("several images", f"the row has {len(value)} images, and one is supported")
        value = value[0] if value else None
    content = value.get("bytes") if isinstance(value, dict) else value
    if isinstance(value, dict) and content is None and value.get("path"):
        return path_inside(folder, value["path"])
    if content is not None and not isinstance(content, bytes):
        raise BadEntry("malformed entry", f"the image is a {type(content).__name__}, not the bytes of one")
    return content


def _messages(texts: Any) -> list[dict[str, Any]]:
    """Converts the turns of the_cauldron to LLaVA's form."""
    if not isinstance(texts, list) or not all(isinstance(turn, dict) for turn in texts):
        raise BadEntry("malformed entry", "texts is not a list of {user, assistant}")
    pairs = [(("human", turn.get("user")), ("gpt", turn.get("assistant"))) for turn in texts]
    return [{"from": role, "value": text} for pair in pairs for role, text in pair]
