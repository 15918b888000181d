"""Which entries of a source have the same image: a file on disk, so that any number of them takes little memory.

An image is known by the BLAKE2b digest (16 bytes) of its encoded bytes, text alone by that of its text.
The file is SQLite's: what was committed survives a kill, and it has one writer.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping
from dataclasses import asdict, astuple, dataclass, replace
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Any

from vla.datasets.formats.vqa_entries import Rejected, VqaEntry, image_bytes
from vla.datasets.questions import Question
from vla.datasets.vqa import CONVERSATION
from vla.errors import InputError

EXAMPLES = 3
"""Rejected entries named for each reason."""
CACHE_KIB = 65_536
"""Of the index in memory."""

_TABLES = """
CREATE TABLE IF NOT EXISTS task (settings TEXT NOT NULL, entries INTEGER NOT NULL, complete INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS images (
    digest BLOB PRIMARY KEY, place INTEGER NOT NULL, entries INTEGER NOT NULL, repeated INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS by_place ON images (place);
CREATE TABLE IF NOT EXISTS texts (
    image BLOB, digest BLOB, place INTEGER NOT NULL, number INTEGER NOT NULL, questions TEXT NOT NULL,
    PRIMARY KEY (image, digest)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS rejected (place INTEGER, entries INTEGER, written INTEGER, name, reason, detail);
CREATE TABLE IF NOT EXISTS batches (items INTEGER PRIMARY KEY, images INTEGER, questions INTEGER, conflicts INTEGER);
"""


@dataclass(frozen=True)
class Progress:
    """What has been written: items, images passed (some were rejected), questions, questions answered differently."""

    items: int = 0
    images: int = 0
    questions: int = 0
    conflicts: int = 0


class VqaIndex:
    """The index in the file `path`, made or gone on with.

    Raises:
        InputError: it was begun with other settings, or another process has it.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self._database = sqlite3.connect(path, timeout=0)
        try:
            self._database.executescript(
                f"PRAGMA locking_mode = EXCLUSIVE; PRAGMA cache_size = -{CACHE_KIB}; {_TABLES}"
            )
            begun = self._one("SELECT settings FROM task")
            if begun is None:
                self._database.execute("INSERT INTO task VALUES (?, 0, 0)", (json.dumps(settings),))
            # A writing transaction also takes the lock for as long as the file is open.
            self._database.execute("UPDATE task SET entries = entries")
            self._database.commit()
        except sqlite3.DatabaseError as error:
            self.close()
            raise InputError(f"another process is importing into {path.parent}, or it is damaged: {error}") from error
        if begun is not None and json.loads(begun[0]) != settings:
            self.close()
            raise InputError(
                f"{path.parent} is an unfinished import of {begun[0]}, not of {json.dumps(settings)}: "
                "go on with that, or remove the folder to start over"
            )
        # Questions about one file often follow one another.
        self._file_digest = lru_cache(4096)(lambda file: _digest(image_bytes(file)))

    def close(self) -> None:
        self._database.close()

    @property
    def entries(self) -> int:
        """Entries that are in the index; they need not be added again."""
        return self._one("SELECT entries FROM task")[0]

    @property
    def complete(self) -> bool:
        return bool(self._one("SELECT complete FROM task")[0])

    def commit(self, entries: int, complete: bool = False) -> None:
        """Makes what was added last, as the index of the first `entries`."""
        self._database.execute("UPDATE task SET entries = ?, complete = ?", (entries, complete))
        self._database.commit()

    def add(self, place: int, entry: VqaEntry) -> None:
        """Takes the entry's questions to those of its image. Raises BadEntry where the image cannot be read."""
        image = self._image(entry)
        repeated = 0
        for number, part in enumerate(_parts(entry.questions)):
            row = (image, _text_digest(part), place, number, json.dumps([astuple(question) for question in part]))
            added = self._database.execute("INSERT OR IGNORE INTO texts VALUES (?, ?, ?, ?, ?)", row).rowcount
            repeated += 0 if added else len(part)
        self._database.execute(
            "INSERT INTO images VALUES (?, ?, 1, ?) ON CONFLICT (digest) "
            "DO UPDATE SET entries = entries + 1, repeated = repeated + excluded.repeated",
            (image, place, repeated),
        )

    def reject(self, place: int, rejected: Rejected, written: bool = False) -> None:
        """Notes an entry left out: one of the source, or (`written`) all with the image that was first at `place`."""
        entries = self._one("SELECT entries FROM images WHERE place = ?", place)[0] if written else 1
        row = (place, entries, written, *astuple(rejected))
        self._database.execute("INSERT INTO rejected VALUES (?, ?, ?, ?, ?, ?)", row)

    def count(self) -> int:
        """The images."""
        return self._one("SELECT count(*) FROM images")[0]

    def images(self, after: int) -> Iterator[tuple[int, tuple[Question, ...]]]:
        """Each image but the first `after`: the place where it is first, and all questions about it, in order."""
        rows = self._database.execute("SELECT digest, place FROM images ORDER BY place LIMIT -1 OFFSET ?", (after,))
        for digest, place in rows:
            found = self._database.execute(
                "SELECT questions FROM texts WHERE image = ? ORDER BY place, number", (digest,)
            )
            parts = (json.loads(texts) for (texts,) in found)
            yield (
                place,
                tuple(replace(Question.from_json(q), talk=talk) for talk, part in enumerate(parts) for q in part),
            )

    def begin_batch(self, progress: Progress) -> None:
        """To be called before the store is written: `resume` tells by the store's length whether it then was."""
        self._database.execute("INSERT OR REPLACE INTO batches VALUES (?, ?, ?, ?)", astuple(progress))
        self._database.commit()

    def resume(self, items: int) -> Progress:
        """The progress of a store with `items`; what was noted beyond it is forgotten."""
        row = self._one("SELECT items, images, questions, conflicts FROM batches WHERE items = ?", items)
        progress = Progress(*row) if row else Progress()
        self._database.execute("DELETE FROM batches WHERE items > ?", (items,))
        place = self._one("SELECT place FROM images ORDER BY place LIMIT 1 OFFSET ?", progress.images)
        if place:
            self._database.execute("DELETE FROM rejected WHERE written AND place >= ?", place)
        self._database.commit()
        return progress

    def report(self, progress: Progress) -> dict[str, Any]:
        """What became of the entries, in JSON values."""
        merged, repeated = self._one(
            "SELECT total(entries) - count(*), total(repeated) FROM images "
            "WHERE place NOT IN (SELECT place FROM rejected WHERE written)"
        )
        by_reason = {}
        for reason, entries in self._database.execute(
            "SELECT reason, sum(entries) FROM rejected GROUP BY reason ORDER BY 2 DESC, 1"
        ):
            named = self._database.execute(
                "SELECT name, reason, detail FROM rejected WHERE reason = ? ORDER BY place LIMIT ?", (reason, EXAMPLES)
            )
            first = [asdict(Rejected(*row)) for row in named]
            by_reason[reason] = {"entries": entries, "first": [{k: r[k] for k in ("entry", "detail")} for r in first]}
        return {
            "entries": self.entries,
            "items": progress.items,
            "questions": progress.questions,
            "entries_merged": int(merged),
            "questions_repeated": int(repeated),
            "questions_with_another_answer": progress.conflicts,
            "rejected": by_reason,
        }

    def _image(self, entry: VqaEntry) -> bytes:
        if entry.image is None:
            return _text_digest(entry.questions)
        if isinstance(entry.image, bytes):
            return _digest(image_bytes(entry.image))
        return self._file_digest(entry.image)

    def _one(self, query: str, *values: Any) -> Any:
        return self._database.execute(query, values).fetchone()


def conflicts(questions: tuple[Question, ...]) -> int:
    """Questions about one image that were asked before and answered differently; turns of conversations aside."""
    alone = {(question.text, question.answer) for question in questions if question.kind != CONVERSATION}
    return len(alone) - len({text for text, _ in alone})


def _parts(questions: tuple[Question, ...]) -> list[tuple[Question, ...]]:
    """What is kept or dropped together: a question, or a whole conversation, whose turns refer to one another."""
    if any(question.kind == CONVERSATION for question in questions):
        return [questions]
    return [(question,) for question in questions]


def _text_digest(questions: tuple[Question, ...]) -> bytes:
    text = json.dumps([(question.text, question.answer) for question in questions])
    return blake2b(text.encode(), digest_size=16, person=b"text").digest()


def _digest(content: bytes) -> bytes:
    return blake2b(content, digest_size=16).digest()
