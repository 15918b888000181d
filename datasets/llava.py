"""Reader of LLaVA's visual instruction data: a JSON list of conversations and a folder of images.

    [{"id": "…", "image": "coco/000000033471.jpg", "conversations": [
        {"from": "human", "value": "<image>\\nWhat are the colors of the bus?"},
        {"from": "gpt", "value": "White and red."}, …]}, …]

Source: Liu et al., "Visual Instruction Tuning", 2023: the format of llava_instruct_150k and llava_v1_5_mix665k.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vla.datasets.questions import MAIN_CAMERA, Question
from vla.datasets.vqa import CONVERSATION, VqaItem
from vla.errors import InputError
from vla.images import resize

SOURCE = "llava"
IMAGE_TOKEN = "<image>"


@dataclass(frozen=True)
class Rejected:
    """An entry that was left out, by its id (its place in the list, if it has none), and why."""

    entry: str
    reason: str


def read_llava(
    json_path: str | Path, image_folder: str | Path, size: int, rejected: list[Rejected] | None = None
) -> Iterator[VqaItem]:
    """The entries as items, their images fitted into `size` x `size` px (`vla.images.resize`: bilinear, antialiased).

    Each turn is a question of kind "conversation", which `VqaStore.examples` keeps together and in order. Image tokens
    are stripped. An entry without an image is text alone.

    An entry that is malformed or whose image cannot be read is left out and added to `rejected`.

    Raises:
        InputError: the file is not a JSON list; or an entry is bad and there is no `rejected` to note it.
    """
    try:
        entries = json.loads(Path(json_path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{json_path} cannot be read as JSON: {error}") from error
    if not isinstance(entries, list):
        raise InputError(f"{json_path} holds a {type(entries).__name__}, not LLaVA's list of conversations")
    return _items(entries, Path(image_folder), size, rejected)


def _items(entries: list[Any], folder: Path, size: int, rejected: list[Rejected] | None) -> Iterator[VqaItem]:
    for place, entry in enumerate(entries):
        try:
            yield _item(entry, folder, size)
        except InputError as error:
            name = str(entry.get("id", place)) if isinstance(entry, dict) else str(place)
            if rejected is None:
                raise InputError(f"entry {name}: {error}") from error
            rejected.append(Rejected(name, str(error)))


def _item(entry: Any, folder: Path, size: int) -> VqaItem:
    if not isinstance(entry, dict):
        raise InputError(f"the entry is a {type(entry).__name__}, not an object")
    name = entry.get("image")
    if name is None:
        return VqaItem({}, _turns(entry.get("conversations"), ""), SOURCE)
    if not isinstance(name, str):
        raise InputError("image is not the name of one file")
    turns = _turns(entry.get("conversations"), MAIN_CAMERA)
    return VqaItem({MAIN_CAMERA: _image(folder / name, size)}, turns, SOURCE)


def _turns(conversation: Any, camera: str) -> tuple[Question, ...]:
    if not isinstance(conversation, list) or not conversation or len(conversation) % 2:
        raise InputError("conversations is not a list of questions and answers in turn")
    texts = []
    for i, message in enumerate(conversation):
        speaker = ("human", "gpt")[i % 2]
        if not isinstance(message, dict) or message.get("from") != speaker:
            raise InputError(f"message {i} is not from {speaker!r}")
        value = message.get("value")
        if not isinstance(value, str):
            raise InputError(f"message {i} has no text")
        if IMAGE_TOKEN in value and not camera:
            raise InputError(f"message {i} refers to an image, and the entry names none")
        text = value.replace(IMAGE_TOKEN, "").strip()
        if not text:
            raise InputError(f"message {i} is empty")
        texts.append(text)
    pairs = zip(texts[::2], texts[1::2], strict=True)
    return tuple(Question(CONVERSATION, question, answer, camera) for question, answer in pairs)


def _image(path: Path, size: int) -> UInt8[np.ndarray, "size size 3"]:
    try:
        with Image.open(path) as image:
            return resize(np.asarray(image.convert("RGB")), size)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"image {path} cannot be read: {error}") from error
