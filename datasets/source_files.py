"""Reads files from other programs: one-line errors for damaged files, and JSON metadata."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vla.errors import InputError

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
"""The first bytes of the pointer that Git stores instead of a file if Git LFS did not fetch the content."""
SKIP_ADVICE = "skip=true leaves such episodes out"
"""Advice for the error about an unreadable episode."""
SHOWN = 200
"""Maximum number of characters of a library's message in an error."""


def is_lfs_pointer(path: Path) -> bool:
    """Whether the file is a Git LFS pointer instead of its content. False if there is no such file."""
    try:
        with path.open("rb") as file:
            return file.read(len(LFS_POINTER)) == LFS_POINTER
    except OSError:
        return False


def check_fetched(path: Path) -> None:
    """Raises InputError if the file is a Git LFS pointer."""
    if is_lfs_pointer(path):
        raise InputError(f"{path} is a Git LFS pointer, not the data: run `git lfs pull` in its folder")


def check_file(path: Path) -> None:
    """Raises InputError if the file is missing, empty or a Git LFS pointer."""
    if not path.is_file():
        raise InputError(f"{path} is missing: download it again")
    check_fetched(path)
    if not path.stat().st_size:
        raise InputError(f"{path} is empty: download it again")


@contextmanager
def reading_file(path: Path, kind: str) -> Iterator[None]:
    """Converts every error in the block into an InputError that names the file and its expected `kind`.

    Use it only around calls of a file format's library, which may raise almost any exception on damaged bytes.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        check_file(path)
        reason = " ".join(str(error).split())[:SHOWN]
        raise InputError(
            f"{path} cannot be read as {kind}, it is cut short, damaged or was never finished: download it again "
            f"({type(error).__name__}: {reason})"
        ) from error


def decode_text(content: bytes, name: object) -> str:
    """The text of a JSON file in UTF-8, or in UTF-16 or UTF-32 if its first bytes show that; without byte order mark.

    Raises InputError with the file and the line for other encodings.
    """
    try:
        return content.decode(json.detect_encoding(content))
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise InputError(f"{name} line {line}: this is not UTF-8 text ({error.reason}): save it as UTF-8") from error


def decode_json(content: bytes, name: object) -> Any:
    """The value in the content of a JSON file. Raises InputError with the file and the line of an error."""
    if content.startswith(LFS_POINTER):
        raise InputError(f"{name} is a Git LFS pointer, not the data: run `git lfs pull` in its folder")
    return _parse(decode_text(content, name), name, 1)


def read_text(path: Path) -> str:
    """The text of a JSON file, in an encoding that `decode_text` supports.

    Raises InputError that names the file if it is missing, empty, a Git LFS pointer or in another encoding.
    """
    check_file(path)
    try:
        return decode_text(path.read_bytes(), path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error


def read_json(path: Path) -> Any:
    """The value in a JSON file. Raises InputError with the file and the line of an error."""
    return _parse(read_text(path), path, 1)


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises InputError as `read_json` does, or if the value is not an object."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise InputError(f"{path} holds a {type(value).__name__}, not a JSON object {{...}}")
    return value


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file with one object per line. Blank lines are skipped. Raises InputError on invalid lines."""
    rows = []
    # Only "\n" ends a line: other line separators of str.splitlines may occur inside a JSON string.
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        row = _parse(line, path, number)
        if not isinstance(row, dict):
            raise InputError(f"{path} line {number} holds a {type(row).__name__}, not a JSON object {{...}}")
        rows.append(row)
    return rows


def _parse(text: str, path: object, first_line: int) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        where = f"line {first_line + error.lineno - 1} column {error.colno}"
        raise InputError(f"{path} is broken JSON at {where}: {error.msg}: correct it or download it again") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as JSON: {error}") from error
