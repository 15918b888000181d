"""Iterates over the entries of a JSON list in constant memory, for files of gigabytes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from vla.datasets.source_files import check_file
from vla.errors import InputError

CHUNK = 2**20
"""Characters per read."""
MAX_VALUE = 2**28
"""Maximum number of characters of one entry, so that a syntax error does not read the entire file as one entry."""
_BLANKS = " \t\r\n"
_AFTER = frozenset(_BLANKS + ",:]}")


def read_list(path: Path, key: str | None = None) -> Iterator[Any]:
    """The entries of the file's list, or of the list at `key` of the file's object.

    Bytes that are not UTF-8 become lone surrogates (PEP 383), so that one invalid text does not fail the entire file.

    Raises:
        InputError: the file cannot be read, is not JSON (with the line), or has no such list. For a truncated file,
            it is raised after the complete entries.
    """
    check_file(path)
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
            scanner = _Scanner(file)
            if scanner.take("[") is (key is None):
                yield from scanner.entries() if key is None else scanner.seek(key)
            else:
                raise InputError(f"{path} holds no list" + (f" {key!r}" if key else " of entries"))
            if key is None and scanner.peek():
                raise ValueError("something follows the list")
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path} cannot be read as JSON: {error}") from error
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else error
        raise InputError(f"{path} cannot be read as JSON, line {scanner.line(error)}: {reason}") from error


class _Scanner:
    """Incremental decoder of JSON values. A value is decoded once it and the character after it have been read."""

    def __init__(self, file: TextIO) -> None:
        self._file, self._text, self._at = file, "", 0
        self._lines = 1
        self._decode = json.JSONDecoder().raw_decode

    def line(self, error: Exception) -> int:
        """The line number of an error: that of the decoder's position, or else that of the scanner's."""
        at = error.pos if isinstance(error, json.JSONDecodeError) else self._at
        return self._lines + self._text.count("\n", 0, at)

    def peek(self) -> str:
        """The next character that is not whitespace; empty at the end."""
        while True:
            while self._at < len(self._text):
                if self._text[self._at] not in _BLANKS:
                    return self._text[self._at]
                self._at += 1
            if not self._more(CHUNK):
                return ""

    def take(self, expected: str) -> bool:
        """Whether the next character is `expected`; if so, moves past it."""
        matches = self.peek() == expected
        self._at += matches
        return matches

    def value(self) -> Any:
        """Decodes the next value."""
        self.peek()
        size = CHUNK
        while True:
            try:
                value, end = self._decode(self._text, self._at)
                # Only the next character shows that a number is complete.
                if self._text[end : end + 1] not in _AFTER:
                    raise ValueError("the text ends too early")
                self._at = end
                return value
            except ValueError:
                if len(self._text) > MAX_VALUE or not self._more(size):
                    raise
            size *= 2  # limits the number of attempts for a long value

    def entries(self) -> Iterator[Any]:
        """The entries after "[", up to the matching "]"."""
        if self.take("]"):
            return
        while True:
            yield self.value()
            if self.take("]"):
                return
            if not self.take(","):
                raise ValueError(f"',' or ']' expected, not {self.peek()!r}")

    def seek(self, key: str) -> Iterator[Any]:
        """The list at `key` of the object that starts at the current position. The rest is not read."""
        if not self.take("{"):
            raise ValueError("an object expected")
        while True:
            name = self.value()
            if not self.take(":"):
                raise ValueError("':' expected")
            if name == key and self.take("["):
                yield from self.entries()
                return
            self.value()
            if not self.take(","):
                raise ValueError(f"there is no list {key!r}")

    def _more(self, size: int) -> bool:
        chunk = self._file.read(size)
        if chunk:
            self._lines += self._text.count("\n", 0, self._at)
            self._text, self._at = self._text[self._at :] + chunk, 0
        return bool(chunk)
