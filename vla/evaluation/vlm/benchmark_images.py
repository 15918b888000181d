"""The images of a benchmark's official files: separate image files, or embedded in tables.

They are decoded as in the official loaders, unlike training images (`vla.common.rgb.to_rgb`): `Image.convert("RGB")`.
The EXIF orientation is applied only where the official code reads through Hugging Face's `datasets`
(`Image.decode_example`): from parquet, and for the benchmarks in `UPRIGHT`.
"""

from __future__ import annotations

import base64
import binascii
import csv
import hashlib
import io
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as Pillow
from PIL import ImageOps

from vla.common.stored_image import Image, Views
from vla.datasets.source_files import check_file
from vla.errors import InputError
from vla.evaluation.vlm.scoring.files import Entry, name

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".gif", ".bmp", ".webp"})
FIELDS = ("image", "imgname", "image_path", "img_path", "data_id", "image_id")
"""The fields of official rows with the path, file name or number of the image."""
UPRIGHT = frozenset({"mmmu", "mathvista"})
"""Benchmarks whose official code reads the images through `datasets`."""
MANY = 7
"""The maximum number of images of an MMMU question, image_1 and on."""


class ImageFiles:
    """Finds the images of questions.

    Args:
        folder: The folder of image files. A name that several files have needs enough of its path to be unique.
        references: Tables that may contain images.
        upright: Whether the EXIF orientation is applied to image files.
    """

    def __init__(self, folder: Path, references: Sequence[Path] = (), upright: bool = False) -> None:
        self.folder = folder
        self._upright = upright
        self._files: dict[str, Path | None] = {}
        self._within: dict[str, tuple[Path, int]] = {}
        self._digests: dict[Path, str] = {}
        for file in sorted(folder.rglob("*")):
            if file.suffix.lower() in SUFFIXES:
                for key in _keys(file.relative_to(folder)):
                    self._files[key] = None if key in self._files else file
        for file in references:
            rows = {".tsv": _tsv_ids, ".parquet": _parquet_ids}.get(file.suffix, lambda _: [])(file)
            self._within |= {i or str(index): (file, index) for index, i in enumerate(rows)}

    def of(self, i: str, entry: Entry) -> Views:
        """The images of question `i`, in order. Raises InputError if one is missing or cannot be read."""
        if i in self._within:
            return self._inside(i)
        file = self.find(i, entry)
        return {"image": _read(file, str(file), self._upright)}

    def check(self, i: str, entry: Entry) -> None:
        """Raises InputError if question `i` has no image."""
        if i not in self._within:
            self.find(i, entry)

    def digest(self, i: str, entry: Entry) -> str:
        """The SHA-256 of the file with the images of question `i`. Raises InputError if there is none."""
        file = self._within[i][0] if i in self._within else self.find(i, entry)
        if file not in self._digests:
            with file.open("rb") as content:
                self._digests[file] = hashlib.file_digest(content, "sha256").hexdigest()
        return self._digests[file]

    def find(self, i: str, entry: Entry) -> Path:
        """The image file of question `i`. Raises InputError if there is none."""
        named = [str(entry[field]) for field in FIELDS if entry.get(field) not in (None, "")]
        if "task" in entry and named:  # MME has one folder per task
            named = [f"{entry['task']}/{named[0]}", f"{entry['task']}/images/{named[0]}"]
        named = named or [i]  # the id of a CHAIR question is that of the image
        file = next((file for text in named if (file := self._find(text))), None)
        if file is None:
            raise InputError(f"{self.folder} has no image {', '.join(named)} of question {i!r}, or several")
        return file

    def _find(self, text: str) -> Path | None:
        """Finds a file by the end of its path, with or without its suffix, or by its COCO number."""
        text = text.lstrip("./").lower()
        number = f"#{int(text)}" if text.isdecimal() else text
        return self._files.get(text) or self._files.get(number)

    def _inside(self, i: str) -> Views:
        file, index = self._within[i]
        if file.suffix == ".parquet":
            cells = {key: value["bytes"] for key, value in _parquet_row(file, index).items() if value}
        else:
            text = _tsv_images(file)[index]
            if text in self._within:  # a rotation refers to the row with the image
                text = _tsv_images(file)[self._within[text][1]]
            try:
                cells = {"image": base64.b64decode(text, validate=True)}
            except binascii.Error as error:
                raise InputError(f"{file}: the image of {i!r} is not base64: {error}") from error
        hub = file.suffix == ".parquet"
        return {key: _read(io.BytesIO(cell), f"{file}, {i!r}", hub) for key, cell in cells.items() if cell}


def _keys(path: Path) -> set[str]:
    """The names of a file: each end of its path, with and without suffix, and its COCO number."""
    ends = ["/".join(path.parts[start:]).lower() for start in range(len(path.parts))]
    digits = re.fullmatch(r"(?:COCO_\w+_)?(\d+)", path.stem)
    return {*ends, *(end.removesuffix(path.suffix.lower()) for end in ends)} | (
        {f"#{int(digits[1])}"} if digits else set()
    )


def _read(source: Path | io.BytesIO, name: str, upright: bool) -> Image:
    if isinstance(source, Path):
        check_file(source)
    try:
        with Pillow.open(source) as image:
            image.load()
            return np.asarray((ImageOps.exif_transpose(image) if upright else image).convert("RGB"))
    except Exception as error:  # Pillow's decoders raise many types for damaged files
        raise InputError(f"cannot read the image {name}: {error}") from error


def _tsv_ids(file: Path) -> list[str | None]:
    csv.field_size_limit(2**31 - 1)
    with file.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines, delimiter="\t")
        return [name(row) for row in reader] if "image" in (reader.fieldnames or ()) else []


@lru_cache(maxsize=1)
def _tsv_images(file: Path) -> list[str]:
    with file.open(encoding="utf-8-sig", newline="") as lines:
        return [row["image"] for row in csv.DictReader(lines, delimiter="\t")]


def _parquet_ids(file: Path) -> list[str | None]:
    from pyarrow import parquet, types

    schema = parquet.read_schema(file)
    if not any(types.is_struct(field.type) and field.name.startswith("image") for field in schema):
        return []
    plain = [field.name for field in schema if not types.is_struct(field.type)]
    return [name(row) for row in parquet.read_table(file, columns=plain).to_pylist()]


def _parquet_row(file: Path, index: int) -> Mapping[str, Any]:
    """The image columns of a row."""
    table = _parquet_images(file)
    return {key: table[key][index].as_py() for key in table.column_names}


@lru_cache(maxsize=1)
def _parquet_images(file: Path) -> Any:
    from pyarrow import parquet

    names = set(parquet.read_schema(file).names)
    return parquet.read_table(
        file, columns=[n for n in ("image", *(f"image_{k + 1}" for k in range(MANY))) if n in names]
    )
