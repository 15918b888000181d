"""The page of a store of visual questions: `vla data info html=FILE`."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from vla.common.html_page import sample_evenly, write_page
from vla.datasets.questions import Question
from vla.datasets.vqa import VqaItem, VqaStore
from vla.errors import InputError

ITEMS, QUESTIONS = 20, 3
"""Maximum number of items, and of questions per item."""


def write_vqa_page(store: VqaStore, file: str) -> Path:
    """Writes or replaces the page `file`. Raises InputError if the store is empty or the file cannot be written."""
    if not len(store):
        raise InputError(f"{store.path} has no items to show: add some first")
    return write_page(
        Path(file),
        f"{store.path}: visual questions",
        "question_store.html",
        store=store,
        items=[_item(store[index]) for index in sample_evenly(range(len(store)), min(ITEMS, len(store)))],
        kinds=Counter(question.kind for question in store.questions()),
    )


def _item(item: VqaItem) -> tuple[str, UInt8[np.ndarray, "h w 3"] | None, list[Question]]:
    """The item's first camera and image, with one question about it of each kind, up to `QUESTIONS`."""
    camera = next(iter(item.images), "")
    candidates = [question for question in item.questions if question.camera == camera] or item.questions
    questions = list({question.kind: question for question in candidates}.values())[:QUESTIONS]
    return camera, item.images.get(camera), questions
