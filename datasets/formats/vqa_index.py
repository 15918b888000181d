"""An index that groups the entries of a source by image. It is a file, so that memory use does not grow with it.

Images are identified by the BLAKE2b digest (16 bytes) of their encoded bytes, text-only entries by that of their text.
The file is an SQLite database: committed data survive a crash, and there is only one writer.
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
"""Maximum number of rejected entries in the report per reason."""
CACHE_KIB = 65_536
"""Memory for the database's cache."""

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
    """Written items, processed images (including rejected ones), questions, and questions with differing answers."""

    items: int = 0
    images: int = 0
    questions: int = 0
    conflicts: int = 0


class VqaIndex:
    """The index in the file `path`, created or resumed.

    Raises:
        InputError: it was created with other settings, or another process uses it.
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
                "resume that import, or remove the folder to start over"
            )
        # Questions about one file are often consecutive.
        self._file_digest = lru_cache(4096)(lambda file: _digest(image_bytes(file)))

    def close(self) -> None:
        """Closes the database."""
        self._database.close()

    @property
    def entries(self) -> int:
        """The number of indexed entries, which need not be added again."""
        return self._one("SELECT entries FROM task")[0]

    @property
    def complete(self) -> bool:
        """Whether all entries of the source are indexed."""
        return bool(self._one("SELECT complete FROM task")[0])

    def commit(self, entries: int, complete: bool = False) -> None:
        """Commits the additions, as the index of the first `entries` entries of the source."""
        self._database.execute("UPDATE task SET entries = ?, complete = ?", (entries, complete))
        self._database.commit()

    def add(self, position: int, entry: VqaEntry) -> None:
        """Adds the entry's questions to those of its image. Raises BadEntry if the image cannot be read."""
        image = self._image(entry)
        repeated = 0
        for number, unit in enumerate(_units(entry.questions)):
            row = (image, _text_digest(unit), position, number, json.dumps([astuple(question) for question in unit]))
            added = self._database.execute("INSERT OR IGNORE INTO texts VALUES (?, ?, ?, ?, ?)", row).rowcount
            repeated += 0 if added else len(unit)
        self._database.execute(
            "INSERT INTO images VALUES (?, ?, 1, ?) ON CONFLICT (digest) "
            "DO UPDATE SET entries = entries + 1, repeated = repeated + excluded.repeated",
            (image, position, repeated),
        )

    def reject(self, position: int, rejected: Rejected, written: bool = False) -> None:
        """Records a rejected entry, or with `written` all entries with the image that first occurs at `position`."""
        entries = self._one("SELECT entries FROM images WHERE place = ?", position)[0] if written else 1
        row = (position, entries, written, *astuple(rejected))
        self._database.execute("INSERT INTO rejected VALUES (?, ?, ?, ?, ?, ?)", row)

    def count(self) -> int:
        """The number of images."""
        return self._one("SELECT count(*) FROM images")[0]

    def images(self, after: int) -> Iterator[tuple[int, tuple[Question, ...]]]:
        """The images after the first `after` ones: the position of their first entry, and all of their questions."""
        rows = self._database.execute("SELECT digest, place FROM images ORDER BY place LIMIT -1 OFFSET ?", (after,))
        for digest, position in rows:
            rows_of_image = self._database.execute(
                "SELECT questions FROM texts WHERE image = ? ORDER BY place, number", (digest,)
            )
            units = (json.loads(texts) for (texts,) in rows_of_image)
            yield (
                position,
                tuple(replace(Question.from_json(q), talk=talk) for talk, unit in enumerate(units) for q in unit),
            )

    def begin_batch(self, progress: Progress) -> None:
        """Call it before each write to the store: `resume` checks the store's length to see if the write succeeded."""
        self._database.execute("INSERT OR REPLACE INTO batches VALUES (?, ?, ?, ?)", astuple(progress))
        self._database.commit()

    def resume(self, items: int) -> Progress:
        """The progress of a store with `items` items. Later records are deleted."""
        row = self._one("SELECT items, images, questions, conflicts FROM batches WHERE items = ?", items)
        progress = Progress(*row) if row else Progress()
        self._database.execute("DELETE FROM batches WHERE items > ?", (items,))
        position = self._one("SELECT place FROM images ORDER BY place LIMIT 1 OFFSET ?", progress.images)
        if position:
            self._database.execute("DELETE FROM rejected WHERE written AND place >= ?", position)
        self._database.commit()
        return progress

    def report(self, progress: Progress) -> dict[str, Any]:
        """The report on the entries, in JSON values."""
        merged, repeated = self._one(
            "SELECT total(entries) - count(*), total(repeated) FROM images "
            "WHERE place NOT IN (SELECT place FROM rejected WHERE written)"
        )
        by_reason = {}
        for reason, entries in self._database.execute(
            "SELECT reason, sum(entries) FROM rejected GROUP BY reason ORDER BY 2 DESC, 1"
        ):
            examples = self._database.execute(
                "SELECT name, reason, detail FROM rejected WHERE reason = ? ORDER BY place LIMIT ?", (reason, EXAMPLES)
            )
            first = [asdict(Rejected(*row)) for row in examples]
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
    """The number of repeated questions about one image with differing answers, without turns of conversations."""
    alone = {(question.text, question.answer) for question in questions if question.kind != CONVERSATION}
    return len(alone) - len({text for text, _ in alone})


def _units(questions: tuple[Question, ...]) -> list[tuple[Question, ...]]:
    """The units that are kept or dropped together: single questions, or complete conversations."""
    if any(question.kind == CONVERSATION for question in questions):
        return [questions]
    return [(question,) for question in questions]


def _text_digest(questions: tuple[Question, ...]) -> bytes:
    text = json.dumps([(question.text, question.answer) for question in questions])
    return blake2b(text.encode(), digest_size=16, person=b"text").digest()


def _digest(content: bytes) -> bytes:
    return blake2b(content, digest_size=16).digest()
