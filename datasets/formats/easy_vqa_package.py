"""Reader of easy-vqa, a small VQA dataset in a PyPI package: 5,000 images of 64 x 64 px, 48,248 questions.

Source: Victor Zhou, "Easy Visual Question Answering", https://victorzhou.com/blog/easy-vqa/ (MIT license).
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Literal

from vla.common.pip_install import install_command
from vla.datasets.formats.vqa_entries import VqaEntry, VqaSource, pixels
from vla.datasets.questions import MAIN_CAMERA, Question
from vla.datasets.vqa import VqaItem
from vla.errors import InputError

SOURCE = "easy-vqa"
SHAPES = frozenset({"circle", "rectangle", "triangle"})


def read_easy_vqa(split: Literal["train", "test"] = "train") -> Iterator[VqaItem]:
    """The items of the official split, in the order of their images, in the original size of 64 x 64 px.

    Raises:
        InputError: the package is not installed, or the split is unknown.
    """
    return (_item(path, questions) for path, questions in _by_image(split))


def detect(path: Path) -> bool:
    """Whether the path is the dataset's name, "easy-vqa" or "easy-vqa/test", and not an existing file."""
    return path.parts[:1] == (SOURCE,) and not path.exists()


def open_entries(path: Path, images: Path | None) -> VqaSource:
    """The training images of "easy-vqa" (or "easy-vqa/train"), or the test images of "easy-vqa/test".

    Raises:
        InputError: the package is not installed, the split is unknown, or `images` is not None.
    """
    if images is not None:
        raise InputError(f"the images of easy-vqa are in its package: leave out images={images}")
    rows = _by_image("/".join(path.parts[1:]) or "train")
    entries = [VqaEntry(Path(image).stem, Path(image), questions, SOURCE) for image, questions in rows]
    return VqaSource((), partial(iter, entries))


def _by_image(split: str) -> list[tuple[str, tuple[Question, ...]]]:
    """The path of each image and its questions."""
    try:
        import easy_vqa
    except ImportError as error:
        raise InputError(f"the easy-vqa data is not installed: {install_command('easy-vqa')}") from error
    if split == "train":
        rows, paths = easy_vqa.get_train_questions(), easy_vqa.get_train_image_paths()
    elif split == "test":
        rows, paths = easy_vqa.get_test_questions(), easy_vqa.get_test_image_paths()
    else:
        raise InputError(f"easy-vqa has no split {split!r}; it has train and test")
    by_image: dict[int, list[Question]] = {}
    for text, answer, image in zip(*rows, strict=True):
        by_image.setdefault(image, []).append(Question(_kind(answer), text, answer, MAIN_CAMERA))
    return [(paths[image], tuple(by_image[image])) for image in sorted(by_image)]


def _item(path: str, questions: tuple[Question, ...]) -> VqaItem:
    return VqaItem({MAIN_CAMERA: pixels(Path(path))}, questions, SOURCE)


def _kind(answer: str) -> str:
    """The kind of a question, which its answer determines."""
    if answer in ("yes", "no"):
        return "existence"
    return "shape" if answer in SHAPES else "color"
