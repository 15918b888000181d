"""Reader of WebDataset shards: tars in which the members with the same name up to the first dot are one sample.

| member                    | content                                                                     |
|---------------------------|-----------------------------------------------------------------------------|
| key.jpg (jpeg, png, webp) | the image                                                                   |
| key.json                  | {question, answer}, or {conversations: […]} in LLaVA's form                  |
| key.txt                   | without key.json: a caption, the answer to `CAPTION_QUESTION`                |

Tars are read as a stream, with one sample in memory.
"""

from __future__ import annotations

import json
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import groupby
from pathlib import Path

from vla.datasets.formats.data_files import folder_name, matching
from vla.datasets.formats.vqa_entries import (
    MAX_IMAGE_BYTES,
    BadEntry,
    Rejected,
    VqaEntry,
    VqaSource,
    attempt,
    single,
    turns,
)
from vla.errors import InputError

CAPTION_QUESTION = "describe the image"
CAPTION = "caption"
IMAGES = ("jpg", "jpeg", "png", "webp")
TEXTS = ("json", "txt")
_DETECTED = 8
"""Number of members to examine in `detect`."""


def detect(path: Path) -> bool:
    """Whether a tar at the path begins with an image and its text."""
    files = _files(path)
    try:
        first = [name.lower() for name, _ in zip(_names(files[0]), range(_DETECTED), strict=False)] if files else []
    except InputError:
        return False
    return any(name.endswith(IMAGES) for name in first) and any(name.endswith(TEXTS) for name in first)


def open_entries(path: Path, images: Path | None) -> VqaSource:
    """The samples of a tar, of a folder's tars, or of those that match a pattern such as "train-*.tar".

    Raises:
        InputError: there is no tar, one cannot be read, or `images` is not None.
    """
    if images is not None:
        raise InputError(f"the images of a WebDataset are in its tars: leave out images={images}")
    files = _files(path)
    if not files:
        raise InputError(f"{path}: there is no .tar file")
    for file in files:
        next(_names(file), None)
    return VqaSource(tuple(files), partial(_entries, files, folder_name(path)))


def _files(path: Path) -> list[Path]:
    candidates = sorted(path.glob("*.tar*")) if path.is_dir() else matching(path)
    return [file for file in candidates if file.name.endswith((".tar", ".tar.gz", ".tgz"))]


def _members(file: Path) -> Iterator[tuple[str, bytes | None]]:
    """The names and contents of the regular files of a tar. The content is None if the file is too large."""
    try:
        with tarfile.open(file, "r|*") as tar:
            for member in tar:
                stream = tar.extractfile(member) if member.isreg() else None
                if stream is not None:
                    yield member.name, stream.read() if member.size <= MAX_IMAGE_BYTES else None
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise InputError(f"{file} cannot be read as a tar: {error}") from error


def _names(file: Path) -> Iterator[str]:
    return (name for name, _ in _members(file))


def _entries(files: list[Path], source: str) -> Iterator[VqaEntry | Rejected]:
    for file in files:
        for key, members in groupby(_members(file), lambda member: _key(member[0])[0]):
            contents = ((_key(name)[1], content) for name, content in members)
            sample = {extension: content for extension, content in contents if extension in (*IMAGES, *TEXTS)}
            yield attempt(f"{file.name}:{key}", partial(_entry, f"{file.name}:{key}", sample, source))


def _key(name: str) -> tuple[str, str]:
    """The sample's key and the member's extension."""
    folder, slash, file = name.rpartition("/")
    key, _, extension = file.partition(".")
    return folder + slash + key, extension.lower()


def _entry(name: str, sample: Mapping[str, bytes | None], source: str) -> VqaEntry:
    if None in sample.values():
        raise BadEntry("image too large", f"a member has more than {MAX_IMAGE_BYTES} bytes")
    image = next((sample[extension] for extension in IMAGES if extension in sample), None)
    if "json" not in sample:
        if image is None or "txt" not in sample:
            raise BadEntry("malformed entry", f"an image and a text are needed, there is {sorted(sample)}")
        return VqaEntry(name, image, single(CAPTION_QUESTION, _text(sample["txt"]), CAPTION), source)
    try:
        content = json.loads(_text(sample["json"]))
    except (ValueError, RecursionError) as error:
        if isinstance(error, BadEntry):
            raise
        raise BadEntry("malformed entry", f"its JSON cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise BadEntry("malformed entry", f"its JSON is a {type(content).__name__}, not an object")
    if "conversations" in content:
        return VqaEntry(name, image, turns(content["conversations"], image is not None), source)
    if image is None:
        raise BadEntry("missing image", "the sample has no image")
    return VqaEntry(name, image, single(content.get("question"), content.get("answer")), source)


def _text(content: bytes | None) -> str:
    try:
        return (content or b"").decode("utf-8")
    except UnicodeDecodeError as error:
        raise BadEntry("not UTF-8", f"its text is not UTF-8: {error}") from error
