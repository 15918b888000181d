"""What every VQA format is read as: entries whose image is still encoded, so that it can be hashed without decoding.

A reader never dies of one bad entry: it yields a `Rejected` in its place. Each format is a module with
`detect(path) -> bool`, which is cheap, and `open_entries(path, images) -> VqaSource`, which raises InputError where
the path is wrong or the format's index cannot be read.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from vla.common.images import reduced
from vla.common.rgb import to_rgb
from vla.datasets.questions import MAIN_CAMERA, Question
from vla.datasets.source_files import LFS_POINTER
from vla.datasets.vqa import CONVERSATION, VqaItem
from vla.errors import InputError

OPEN = "open"
"""The kind of a question that stands alone and whose source names no kind."""
IMAGE_TOKEN = "<image>"
MAX_TEXT = 16_384
"""Characters of one question or answer."""
MAX_IMAGE_BYTES = 64 * 2**20
"""Size of an encoded image."""
MAX_PIXELS = 50_000_000
"""Pixels of an image: a bigger one is taken for a decompression bomb."""


class BadEntry(InputError):
    """An entry cannot be used. `reason` is the class of the fault, the message says what it is here."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True)
class Rejected:
    """An entry that was left out, by its id (its place, if it has none): the class of the fault, and the fault."""

    entry: str
    reason: str
    detail: str


@dataclass(frozen=True)
class VqaEntry:
    """Questions about one image, which is a file, its encoded bytes, or None for text alone."""

    name: str
    image: Path | bytes | None
    questions: tuple[Question, ...]
    source: str


@dataclass(frozen=True)
class VqaSource:
    """Entries that can be read again from the start, the same in the same order while `files` stay as they are."""

    files: tuple[Path, ...]
    entries: Callable[[], Iterator[VqaEntry | Rejected]]


class VqaFormat(Protocol):
    """A module that reads one format."""

    def detect(self, path: Path) -> bool: ...

    def open_entries(self, path: Path, images: Path | None) -> VqaSource: ...


def attempt(name: str, make: Callable[[], VqaEntry]) -> VqaEntry | Rejected:
    """The entry that `make` makes, or why it could not."""
    try:
        return make()
    except BadEntry as error:
        return Rejected(printable(name), error.reason, printable(str(error)))


def read_items(entries: Iterator[VqaEntry | Rejected], size: int, rejected: list[Rejected] | None) -> Iterator[VqaItem]:
    """The entries as items, their images with no side longer than `size` px; what is bad goes to `rejected`.

    Raises:
        InputError: an entry is bad and there is no `rejected` to note it.
    """
    for entry in entries:
        try:
            if isinstance(entry, Rejected):
                raise BadEntry(entry.reason, entry.detail)
            yield VqaItem(decoded(entry, size), entry.questions, entry.source)
        except BadEntry as error:
            name = entry.entry if isinstance(entry, Rejected) else entry.name
            if rejected is None:
                raise InputError(f"entry {name}: {error}") from error
            rejected.append(Rejected(name, error.reason, str(error)))


def decoded(entry: VqaEntry, size: int) -> dict[str, UInt8[np.ndarray, "h w 3"]]:
    """The entry's image, if any, in its own shape and with no side longer than `size` px: a model shows it as it was
    trained to. Raises BadEntry where it cannot be read."""
    return {} if entry.image is None else {MAIN_CAMERA: reduced(pixels(entry.image), size)}


def pixels(image: Path | bytes) -> UInt8[np.ndarray, "h w 3"]:
    """The pixels of a file, or of its content (`vla.common.rgb.to_rgb`). Raises BadEntry where it is not an image."""
    content = image_bytes(image)
    try:
        return _decode(content)
    except BadEntry as error:
        which = f"image {image}" if isinstance(image, Path) else "the image"
        raise BadEntry(error.reason, f"{which} {error}") from error


def image_bytes(image: Path | bytes) -> bytes:
    """The encoded image. Raises BadEntry where there is none, or it is too large."""
    if isinstance(image, bytes):
        size, content = len(image), image
    else:
        try:
            # Not a pipe or a device, which would block or never end.
            if not image.is_file():
                raise BadEntry("missing image", f"image {image} cannot be read: no such file")
            size = image.stat().st_size
            content = image.read_bytes() if size <= MAX_IMAGE_BYTES else b""
        except (OSError, ValueError) as error:
            if isinstance(error, BadEntry):
                raise
            raise BadEntry("missing image", f"image {image} cannot be read: {error}") from error
    if size > MAX_IMAGE_BYTES:
        raise BadEntry("image too large", f"the image has {size} bytes, more than {MAX_IMAGE_BYTES}")
    return content


def path_inside(folder: Path, name: Any) -> Path:
    """The file `name` of the folder. Raises BadEntry where it is no name, or leads out of the folder.

    Links that lie in the folder are its owner's, and are followed.
    """
    if not isinstance(name, str) or not name:
        raise BadEntry("malformed entry", "image is not the name of one file")
    if os.path.isabs(name) or os.path.normpath(name).split(os.sep)[0] == os.pardir:
        raise BadEntry("image outside the folder", f"image {name} leads out of {folder}")
    return folder / name


def checked_text(value: Any, what: str) -> str:
    """The text without image tokens and outer blanks. Raises BadEntry where that is no use."""
    if not isinstance(value, str):
        raise BadEntry("malformed entry", f"{what} has no text")
    text = value.replace(IMAGE_TOKEN, "").strip()
    if not text:
        raise BadEntry("empty text", f"{what} is empty")
    if len(text) > MAX_TEXT:
        raise BadEntry("text too long", f"{what} has {len(text)} characters, more than {MAX_TEXT}")
    if printable(text) != text:
        raise BadEntry("not UTF-8", f"{what} is not UTF-8 text")
    return text


def single(question: Any, answer: Any, kind: str = OPEN, people: tuple[str, ...] = ()) -> tuple[Question, ...]:
    """One question that stands alone; `people` are the answers of several."""
    texts = checked_text(question, "the question"), checked_text(answer, "the answer")
    return (Question(kind, *texts, MAIN_CAMERA, tuple(printable(text) for text in people)),)


def turns(conversation: Any, image: bool) -> tuple[Question, ...]:
    """A conversation in LLaVA's form, [{"from": "human", "value": …}, {"from": "gpt", "value": …}, …].

    Its turns are of the kind "conversation"; one that ends with its first answer is a question that stands alone.
    Raises BadEntry where it is malformed, or speaks of an image and there is none.
    """
    if not isinstance(conversation, list) or not conversation or len(conversation) % 2:
        raise BadEntry("malformed entry", "conversations is not a list of questions and answers in turn")
    texts = []
    for i, message in enumerate(conversation):
        speaker = ("human", "gpt")[i % 2]
        if not isinstance(message, dict) or message.get("from") != speaker:
            raise BadEntry("malformed entry", f"message {i} is not from {speaker!r}")
        if not image and IMAGE_TOKEN in str(message.get("value")):
            raise BadEntry("missing image", f"message {i} refers to an image, and the entry names none")
        texts.append(checked_text(message.get("value"), f"message {i}"))
    camera = MAIN_CAMERA if image else ""
    kind = OPEN if len(texts) == 2 else CONVERSATION
    pairs = zip(texts[::2], texts[1::2], strict=True)
    return tuple(Question(kind, question, answer, camera) for question, answer in pairs)


def printable(text: str) -> str:
    """The text with question marks for what UTF-8 cannot hold (bytes read with "surrogateescape")."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _decode(content: bytes) -> UInt8[np.ndarray, "h w 3"]:
    if content.startswith(LFS_POINTER):
        raise BadEntry("Git LFS pointer", "is a Git LFS pointer, not the data: run `git lfs pull` in its folder")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's on odd metadata and on sizes, which are checked here
            with Image.open(io.BytesIO(content)) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise Image.DecompressionBombError(f"{image.width} x {image.height} px")
                return to_rgb(image)
    except Image.DecompressionBombError as error:
        raise BadEntry("decompression bomb", f"decodes to too many pixels: {error}") from error
    except UnidentifiedImageError as error:
        raise BadEntry("broken image", "cannot be read: it is in no format of images") from error
    except Exception as error:  # Pillow's decoders raise whatever a damaged file makes them raise
        raise BadEntry("broken image", f"cannot be read: {error}") from error
