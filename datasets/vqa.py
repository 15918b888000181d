"""The VQA store: images and their questions in one zarr v3 folder.

| array           | shape        | content                                                                             |
|-----------------|--------------|-------------------------------------------------------------------------------------|
| images/<camera> | (N, h, w, 3) | uint8; black where an item has no image of that camera                              |
| items           | (N,)         | JSON texts: {cameras, questions: [[field of `Question`, …], …], source, key, sizes} |

The group's attributes hold the format, the schema version, the cameras, the images' height and width [px], their
codec, and the number of committed items. In version 2, height and width are maxima: each image has its own shape,
`sizes` {camera: [height, width]}, and is in the upper left of its frame; its last row and column are repeated to fill
the frame. An append is atomic: its last step is the replacement of the one file with the number of items. Rows that a
killed writer left after that number are overwritten by the next append. Only one process writes (an flock on the
folder, held while appending); readers see the items that existed when they opened the store.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from itertools import batched
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import zarr
from crc32c import crc32c
from jaxtyping import Int, UInt8
from zarr.storage import MemoryStore

from vla.common.stored_image import Image, StoredImage, decoded
from vla.datasets.codecs import DEFAULT
from vla.datasets.codecs import codec as find_codec
from vla.datasets.folder import Folder, array, reading
from vla.datasets.open_folder import open_folder
from vla.datasets.questions import Question
from vla.datasets.shards import FRAMES_PER_SHARD
from vla.datasets.store_arrays import StoreArrays
from vla.errors import InputError
from vla.types import Example

FORMAT = "vla.vqa"
SAME_SIZE, MIXED_SIZES = VERSIONS = 1, 2
"""Schema versions: all images have one size, or each has its own size."""
CONVERSATION = "conversation"
"""The kind of questions that may refer to earlier ones of their item: the turns of one conversation are one example."""
HELD_OUT = 0.1
"""The share of images in the held-out split."""

Split = Literal["train", "held-out"]


@dataclass(frozen=True)
class VqaItem:
    """Images by camera, taken at the same time (none for text-only items), and questions about them."""

    images: Mapping[str, UInt8[np.ndarray, "_h _w 3"]]
    questions: tuple[Question, ...]
    source: str


class VqaStore:
    """A VQA store for reading and appending: a sequence of `VqaItem`.

    Raises:
        InputError: `path` is not a VQA store, or is damaged.
    """

    def __init__(self, path: str | Path) -> None:
        self.folder: Folder = open_folder(path)
        if not self.folder.exists("zarr.json"):
            from vla.datasets.format_registry import conversion

            command = conversion(self.path) if self.folder.exists("") else ""
            advice = f"convert what is there, {command}" if command else "make one first, or correct the path"
            raise InputError(f"no VQA store at {self.path}: {advice}")
        with reading(f"{self.path}/zarr.json"):
            group = zarr.open_group(self.folder.zarr(), mode="r", zarr_format=3)
            attributes: dict[str, Any] = dict(group.attrs)
        if attributes.get("format") != FORMAT or attributes.get("schema_version") not in VERSIONS:
            raise InputError(
                f"{self.path} is not a VQA store of version {SAME_SIZE} or {MIXED_SIZES}: "
                f"its attributes are {attributes}"
            )
        with reading(self.path):
            self.smaller = attributes["schema_version"] == MIXED_SIZES
            self.cameras: tuple[str, ...] = tuple(attributes["cameras"])
            self.height, self.width = int(attributes["height"]), int(attributes["width"])
            # Stores from older versions, without this attribute, use zstd.
            self.codec = str(attributes.get("codec", DEFAULT))
            self._texts = [str(text) for text in np.asarray(array(group, "items")[: attributes["items"]])]
        if len(self._texts) != attributes["items"]:
            raise InputError(
                f"{self.path} holds {len(self._texts)} of {attributes['items']} items: restore it from a copy"
            )
        self._arrays = StoreArrays(self.folder, group, self.codec, len(self._texts))

    @classmethod
    def create(
        cls,
        path: str | Path,
        cameras: Sequence[str],
        height: int,
        width: int,
        codec: str = DEFAULT,
        smaller: bool = False,
    ) -> VqaStore:
        """Creates an empty store.

        Args:
            path: a folder or an address of an object store.
            cameras: the names of the cameras.
            height: the images' height [px].
            width: the images' width [px].
            codec: the image codec (`vla.datasets.codecs`).
            smaller: whether height and width are maxima, so that images may be smaller.

        Raises:
            InputError: `path` exists already, or there is no camera or no such codec.
        """
        find_codec(codec)
        if not cameras or min(height, width) < 1:
            raise InputError(f"a VQA store needs a camera and a size in pixels, not {cameras} and {height} x {width}")
        version = MIXED_SIZES if smaller else SAME_SIZE
        attributes = {"format": FORMAT, "schema_version": version, "cameras": list(cameras)}
        attributes |= {"height": height, "width": width, "codec": codec, "items": 0}
        files: dict[str, Any] = {}
        group = zarr.create_group(MemoryStore(files), attributes=attributes)
        group.create_array("items", shape=(0,), chunks=(FRAMES_PER_SHARD,), dtype=str)
        frame = ((height, width, 3), np.dtype(np.uint8))
        StoreArrays(open_folder(path), group, codec, 0).create({f"images/{camera}": frame for camera in cameras})
        open_folder(path).publish({name: content.to_bytes() for name, content in files.items()})
        return cls(path)

    def __reduce__(self) -> tuple[type[VqaStore], tuple[str]]:
        """Pickles as a reference: another process opens the same store."""
        return VqaStore, (self.path,)

    @property
    def path(self) -> str:
        """The folder's path or address."""
        return str(self.folder)

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, index: int) -> VqaItem:
        record = self._record(index)
        questions = tuple(Question.from_json(values) for values in record["questions"])
        return VqaItem(self._images(index, record), questions, record["source"])

    @property
    def sources(self) -> Counter[str]:
        """The number of items of each source."""
        return Counter(str(self._record(i)["source"]) for i in range(len(self)))

    def append(self, items: Sequence[VqaItem]) -> None:
        """Commits `items`. On any failure, none is committed.

        Raises:
            InputError: an item has an unknown camera or an image of a wrong size; or another process is writing, or
                has written since this store was opened.
        """
        for number, item in enumerate(items):
            self._check(number, item)
        start, stop = len(self), len(self) + len(items)
        texts = [_to_json(item, self.smaller) for item in items]
        release = self.folder.lock()
        try:
            group = zarr.open_group(self.folder.zarr(), mode="r+", zarr_format=3)
            if group.attrs["items"] != start:
                raise InputError(f"{self.path} has grown since it was opened: open it again to append")
            arrays = StoreArrays(self.folder, group, self.codec, start)
            for camera in self.cameras:
                frames = np.zeros((len(items), self.height, self.width, 3), np.uint8)
                for frame, item in zip(frames, items, strict=True):
                    if camera in item.images:
                        _draw(item.images[camera], frame)
                name = f"images/{camera}"
                arrays.write([name], {name: arrays.frames(name).encode(frames)}, len(items))
            stream = array(group, "items")
            stream.resize((stop,))
            stream[start:] = np.array(texts, dtype=object)
            group.update_attributes({"items": stop})
        finally:
            release()
        self._texts += texts
        self._arrays.forget(stop)

    def extend(self, items: Iterable[VqaItem]) -> None:
        """Appends `items` one shard at a time. Shards committed before a failure remain."""
        for batch in batched(items, FRAMES_PER_SHARD):
            self.append(batch)

    def split(self, split: Split) -> Int[np.ndarray, "n"]:
        """Indices of the items of a split.

        The split depends on the images' content: all copies of an image, in any store, are on the same side, and an
        image never changes sides.
        """
        held_out = np.array([self._record(i)["key"] % 10_000 < HELD_OUT * 10_000 for i in range(len(self))], bool)
        return np.flatnonzero(held_out == (split == "held-out"))

    def has_questions(self, index: int, kinds: Sequence[str] | None = None) -> bool:
        """Whether the item has a question of one of these kinds (None: of any kind)."""
        return any(kinds is None or values[0] in kinds for values in self._record(index)["questions"])

    def item_questions(self, index: int) -> tuple[Question, ...]:
        """The item's questions, without reading its images."""
        return tuple(Question.from_json(values) for values in self._record(index)["questions"])

    def stored(self, index: int) -> tuple[dict[str, StoredImage], str]:
        """The item's images, not yet decoded, and its source."""
        record = self._record(index)
        return self._stored(index, record), record["source"]

    def questions(self, split: Split | None = None) -> Iterator[Question]:
        """All questions of a split, in the store's order."""
        for i in range(len(self)) if split is None else self.split(split).tolist():
            yield from (Question.from_json(values) for values in self._record(i)["questions"])

    def examples(
        self,
        split: Split | None = None,
        kinds: Sequence[str] | None = None,
        source: str | None = None,
    ) -> VqaExamples:
        """Examples of a split, in the store's order: one per question, and one per conversation with its turns.

        Args:
            split: the split, or None for all items.
            kinds: the kinds of questions, or None for all.
            source: the source of the examples, or None for "vqa:<kind>".
        """
        table: list[tuple[int, tuple[int, ...]]] = []
        for i in range(len(self)) if split is None else self.split(split).tolist():
            talks: dict[int, list[int]] = {}
            for j, values in enumerate(self._record(i)["questions"]):
                question = Question.from_json(values)
                if kinds is not None and question.kind not in kinds:
                    continue
                if question.kind != CONVERSATION:
                    table.append((i, (j,)))
                elif question.talk in talks:
                    talks[question.talk].append(j)
                else:
                    talks[question.talk] = [j]
            table += [(i, tuple(turns)) for turns in talks.values()]
        return VqaExamples(self, table, source)

    def _check(self, number: int, item: VqaItem) -> None:
        size = (self.height, self.width, 3)
        for camera, image in item.images.items():
            if camera not in self.cameras:
                raise InputError(f"item {number}: camera {camera!r} is not one of the store's, {self.cameras}")
            fits = self.smaller and 0 < image.shape[0] <= self.height and 0 < image.shape[1] <= self.width
            if not (fits or image.shape == size) or image.dtype != np.uint8:
                most = "at most " if self.smaller else ""
                raise InputError(f"item {number}: {camera} is {image.dtype} {image.shape}, expected uint8 {most}{size}")

    def _record(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"item {index} of {len(self)}")
        with reading(f"{self.path}/items"):
            record: dict[str, Any] = json.loads(self._texts[index])
        return record

    def _stored(self, index: int, record: Mapping[str, Any]) -> dict[str, StoredImage]:
        sizes = {camera: (height, width) for camera, (height, width) in record.get("sizes", {}).items()}
        frames = {camera: self._arrays.frames(f"images/{camera}") for camera in record["cameras"]}
        return {camera: StoredImage(source, index, sizes.get(camera)) for camera, source in frames.items()}

    def _images(self, index: int, record: Mapping[str, Any]) -> dict[str, UInt8[np.ndarray, "_h _w 3"]]:
        return decoded(self._stored(index, record))


class VqaExamples(Sequence[Example]):
    """Questions of a store as training examples, read on demand. The prompt is the question, the target the answer.

    `table` has, for each example, the index of its item and the indices of its questions, which are of one kind. The
    source of an example is `source`, or "vqa:<kind>" if that is None.
    """

    def __init__(self, store: VqaStore, table: Sequence[tuple[int, tuple[int, ...]]], source: str | None) -> None:
        self._store, self._table, self._source = store, table, source

    def __len__(self) -> int:
        return len(self._table)

    @overload
    def __getitem__(self, index: int) -> Example: ...

    @overload
    def __getitem__(self, index: slice) -> VqaExamples: ...

    def __getitem__(self, index: int | slice) -> Example | VqaExamples:
        if isinstance(index, slice):
            return VqaExamples(self._store, self._table[index], self._source)
        item, numbers = self._table[index]
        record = self._store._record(item)
        first, *others = (Question.from_json(record["questions"][j]) for j in numbers)
        return Example(
            images=self._store._images(item, record),
            prompt=first.text,
            target=first.answer,
            turns=tuple((question.text, question.answer) for question in others),
            source=self._source or f"vqa:{first.kind}",
        )

    def __iter__(self) -> Iterator[Example]:
        return (self[i] for i in range(len(self)))

    def question(self, index: int) -> Question:
        """The first question of an example."""
        item, numbers = self._table[index]
        return Question.from_json(self._store._record(item)["questions"][numbers[0]])


def _draw(image: Image, frame: UInt8[np.ndarray, "h w 3"]) -> None:
    """Copies the image to the upper left of the frame and repeats its last row and column.

    The repetition avoids an edge, at which a lossy codec would distort the image.
    """
    height, width = image.shape[:2]
    frame[:height, :width] = image
    frame[:height, width:] = image[:, -1:]
    frame[height:] = frame[height - 1]


def _to_json(item: VqaItem, sizes: bool) -> str:
    questions = [astuple(question) for question in item.questions]
    # The key of an item without images is computed from its text.
    key = crc32c(b"" if item.images else json.dumps(questions).encode())
    for _, image in sorted(item.images.items()):
        key = crc32c(np.ascontiguousarray(image).data.cast("B"), key)
    record = {"cameras": list(item.images), "questions": questions, "source": item.source, "key": key}
    sizes_field = {"sizes": {camera: image.shape[:2] for camera, image in item.images.items()}} if sizes else {}
    return json.dumps(record | sizes_field)
