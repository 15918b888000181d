"""The common interface of VQA formats: entries with encoded images, so that they can be hashed without decoding.

An invalid entry does not stop a reader: it yields a `Rejected` instead. Each format is a module with
`detect(path) -> bool`, which is cheap, and `open_entries(path, images) -> VqaSource`, which raises InputError if the
path is wrong or the format's index cannot be read.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

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
"""The kind of single questions whose source has no kinds."""
IMAGE_TOKEN = "<image>"
MAX_TEXT = 16_384
"""Maximum number of characters of a question or an answer."""
MAX_IMAGE_BYTES = 64 * 2**20
"""Maximum size of an encoded image."""
MAX_PIXELS = 50_000_000
"""Maximum number of pixels of an image, against decompression bombs."""


class BadEntry(InputError):
    """An invalid entry. `reason` is the category of the fault; the message describes it."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True)
class Rejected:
    """A rejected entry: its id (or its position, if it has none), the category of the fault, and its description."""

    entry: str
    reason: str
    detail: str


@dataclass(frozen=True)
class VqaEntry:
    """Questions about one image, which is a file, encoded bytes, or None for text-only entries."""

    name: str
    image: Path | bytes | None
    questions: tuple[Question, ...]
    source: str


@dataclass(frozen=True)
class VqaSource:
    """Entries that can be read repeatedly, in the same order as long as `files` do not change."""

    files: tuple[Path, ...]
    entries: Callable[[], Iterator[VqaEntry | Rejected]]


@runtime_checkable
class VqaFormat(Protocol):
    """A module that reads one format."""

    def detect(self, path: Path) -> bool:
        """Whether the path is of this format; a cheap check."""
        ...

    def open_entries(self, path: Path, images: Path | None) -> VqaSource:
        """Opens the entries; `images` is the folder of images. Raises InputError if the index cannot be read."""
        ...


def attempt(name: str, make: Callable[[], VqaEntry]) -> VqaEntry | Rejected:
    """The entry that `make` returns, or the reason why it failed."""
    try:
        return make()
    except BadEntry as error:
        return Rejected(printable(name), error.reason, printable(str(error)))


def read_items(entries: Iterator[VqaEntry | Rejected], size: int, rejected: list[Rejected] | None) -> Iterator[VqaItem]:
    """The entries as items, with images reduced to at most `size` px per side. Invalid ones are added to `rejected`.

    Raises:
        InputError: an entry is invalid and `rejected` is None.
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
    """The entry's image, if any, with its aspect ratio, reduced to at most `size` px per side.

    Raises BadEntry if it cannot be read.
    """
    return {} if entry.image is None else {MAIN_CAMERA: reduced(pixels(entry.image), size)}


def pixels(image: Path | bytes) -> UInt8[np.ndarray, "h w 3"]:
    """The RGB pixels of an image file or its content (`vla.common.rgb.to_rgb`). Raises BadEntry if it is invalid."""
    content = image_bytes(image)
    try:
        return _decode(content)
    except BadEntry as error:
        which = f"image {image}" if isinstance(image, Path) else "the image"
        raise BadEntry(error.reason, f"{which} {error}") from error


def image_bytes(image: Path | bytes) -> bytes:
    """The encoded image. Raises BadEntry if it is missing or too large."""
    if isinstance(image, bytes):
        size, content = len(image), image
    else:
        try:
            # Pipes and devices would block or never end.
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
    """The file `name` of the folder. Raises BadEntry if it is not a name, or leads out of the folder.

    Links inside the folder are trusted and followed.
    """
    if not isinstance(name, str) or not name:
        raise BadEntry("malformed entry", "image is not the name of one file")
    if os.path.isabs(name) or os.path.normpath(name).split(os.sep)[0] == os.pardir:
        raise BadEntry("image outside the folder", f"image {name} leads out of {folder}")
    return folder / name


def checked_text(value: Any, what: str) -> str:
    """The text without image tokens and surrounding whitespace. Raises BadEntry if it is invalid."""
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
    """A single question. `people` are the answers of several annotators."""
    texts = checked_text(question, "the question"), checked_text(answer, "the answer")
    return (Question(kind, *texts, MAIN_CAMERA, tuple(printable(text) for text in people)),)


def turns(conversation: Any, image: bool) -> tuple[Question, ...]:
    """The turns of a conversation in LLaVA's form, [{"from": "human", "value": …}, {"from": "gpt", "value": …}, …].

    They are of the kind "conversation"; a conversation with one turn is a single question. Raises BadEntry if it is
    malformed, or refers to an image and there is none.
    """
    if not isinstance(conversation, list) or not conversation or len(conversation) % 2:
        raise BadEntry("malformed entry", "conversations is not a list of questions and answers in turn")
    texts = []
    for i, message in enumerate(conversation):
        role = ("human", "gpt")[i % 2]
        if not isinstance(message, dict) or message.get("from") != role:
            raise BadEntry("malformed entry", f"message {i} is not from {role!r}")
        if not image and IMAGE_TOKEN in str(message.get("value")):
            raise BadEntry("missing image", f"message {i} refers to an image, and the entry names none")
        texts.append(checked_text(message.get("value"), f"message {i}"))
    camera = MAIN_CAMERA if image else ""
    kind = OPEN if len(texts) == 2 else CONVERSATION
    pairs = zip(texts[::2], texts[1::2], strict=True)
    return tuple(Question(kind, question, answer, camera) for question, answer in pairs)


def printable(text: str) -> str:
    """The text with question marks instead of characters that UTF-8 cannot encode (lone surrogates)."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _decode(content: bytes) -> UInt8[np.ndarray, "h w 3"]:
    if content.startswith(LFS_POINTER):
        raise BadEntry("Git LFS pointer", "is a Git LFS pointer, not the data: run `git lfs pull` in its folder")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns about metadata and about sizes, which are checked below
            with Image.open(io.BytesIO(content)) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise Image.DecompressionBombError(f"{image.width} x {image.height} px")
                return to_rgb(image)
    except Image.DecompressionBombError as error:
        raise BadEntry("decompression bomb", f"decodes to too many pixels: {error}") from error
    except UnidentifiedImageError as error:
        raise BadEntry("broken image", "cannot be read: it is in no format of images") from error
    except Exception as error:  # Pillow's decoders raise almost any exception on damaged files
        raise BadEntry("broken image", f"cannot be read: {error}") from error
