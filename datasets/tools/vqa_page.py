"""The page of a store of visual questions: `vla data info html=FILE`."""

from __future__ import annotations

from collections import Counter
from html import escape
from pathlib import Path

from vla.common.html_page import bar, format_bytes, image_uri, sample_evenly, section, tile, write_page
from vla.datasets.questions import Question
from vla.datasets.vqa import VqaItem, VqaStore
from vla.errors import InputError

ITEMS, QUESTIONS = 20, 3
"""Maximum number of items, and of questions per item."""
PICTURE = 320
"""Maximum width and height of a picture [px]."""


def write_vqa_page(store: VqaStore, file: str) -> Path:
    """Writes or replaces the page `file`. Raises InputError if the store is empty or the file cannot be written."""
    if not len(store):
        raise InputError(f"{store.path} has no items to show: add some first")
    kinds = Counter(question.kind for question in store.questions())
    items = "".join(_item(store[index]) for index in sample_evenly(range(len(store)), min(ITEMS, len(store))))
    sections = [
        _head(store, kinds),
        section("Items", f'<div class="samples">{items}</div>'),
        section("Questions by kind", _bars(kinds)),
        section("Items by source", _bars(store.sources)),
    ]
    return write_page(Path(file), f"{store.path}: visual questions", sections)


def _head(store: VqaStore, kinds: Counter[str]) -> str:
    size = sum(store.folder.sizes().values())
    tiles = (
        tile("items", f"{len(store)}", f"{len(store.split('held-out'))} held out"),
        tile("questions", f"{kinds.total()}", f"of {len(kinds)} kinds"),
        tile(
            "cameras",
            f"{len(store.cameras)}",
            f"{escape(', '.join(store.cameras))}<br>{'up to ' * store.smaller}{store.width}×{store.height}",
        ),
        tile("size", format_bytes(size), f"images as {store.codec}"),
    )
    name = store.path.rstrip("/").rpartition("/")[2]
    return f'<h1>{escape(name)}</h1>\n<p class="lead">Visual questions</p>\n<div class="tiles">{"".join(tiles)}</div>'


def _bars(counts: Counter[str]) -> str:
    most = max(counts.values(), default=1)
    bars = (bar(name or "unnamed", count / most, str(count), "wide") for name, count in counts.most_common())
    return f'<div class="bars wide">{"".join(bars)}</div>'


def _item(item: VqaItem) -> str:
    """The item's first image, with one question about it of each kind, up to `QUESTIONS`."""
    camera = next(iter(item.images), "")
    picture = camera and f'<img src="{image_uri(item.images[camera], ".jpeg", PICTURE)}" alt="{escape(camera)}">'
    candidates = [question for question in item.questions if question.camera == camera] or item.questions
    questions = list({question.kind: question for question in candidates}.values())[:QUESTIONS]
    lines = "".join(map(_question, questions))
    return f'<figure class="card"><div class="picture">{picture}</div><figcaption>{lines}</figcaption></figure>'


def _question(question: Question) -> str:
    return f'<span>{escape(question.text)} <b class="good">{escape(question.answer)}</b></span>'
