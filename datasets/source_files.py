"""Files that other programs wrote: what is wrong with one in one line, and metadata in JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vla.errors import InputError

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
"""How the text begins that Git leaves in the place of a file's content when Git LFS did not fetch it."""
SHOWN = 200
"""Characters of a library's own message that are shown."""


def is_lfs_pointer(path: Path) -> bool:
    """Whether the file holds a Git LFS pointer and not its content. False for what is no file."""
    try:
        with path.open("rb") as file:
            return file.read(len(LFS_POINTER)) == LFS_POINTER
    except OSError:
        return False


def check_fetched(path: Path) -> None:
    """Raises InputError when the file is a Git LFS pointer."""
    if is_lfs_pointer(path):
        raise InputError(f"{path} is a Git LFS pointer, not the data: run `git lfs pull` in its folder")


def check_file(path: Path) -> None:
    """Raises InputError when there is no file at `path`, when it is empty, and when it is a Git LFS pointer."""
    if not path.is_file():
        raise InputError(f"{path} is missing: download it again")
    check_fetched(path)
    if not path.stat().st_size:
        raise InputError(f"{path} is empty: download it again")


@contextmanager
def reading_file(path: Path, kind: str) -> Iterator[None]:
    """Turns every error inside the block into an InputError that names the file; `kind` is what it should be.

    For calls of a file format's own library alone: over damaged bytes such a library raises nearly anything.
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
    """The text of a JSON file: UTF-8, or UTF-16 or UTF-32 as its first bytes show; a byte order mark is left out.

    Raises InputError that names the file and the line for another encoding.
    """
    try:
        return content.decode(json.detect_encoding(content))
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise InputError(f"{name} line {line}: this is no UTF-8 text ({error.reason}): save it as UTF-8") from error


def decode_json(content: bytes, name: object) -> Any:
    """The value that a file of this content holds. Raises InputError that names the file, and the line of a fault."""
    if content.startswith(LFS_POINTER):
        raise InputError(f"{name} is a Git LFS pointer, not the data: run `git lfs pull` in its folder")
    return _parse(decode_text(content, name), name, 1)


def read_text(path: Path) -> str:
    """The text of a JSON file, in any encoding of `decode_text`.

    Raises InputError that names the file when it is missing, empty, a Git LFS pointer or in another encoding.
    """
    check_file(path)
    try:
        return decode_text(path.read_bytes(), path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error


def read_json(path: Path) -> Any:
    """The value in a JSON file. Raises InputError that names the file, and the line where it is no JSON."""
    return _parse(read_text(path), path, 1)


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises InputError as `read_json` does, and where it holds something else."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise InputError(f"{path} holds a {type(value).__name__}, not a JSON object {{...}}")
    return value


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file with one a line; blank lines are skipped. Raises InputError as `read_json_object` does."""
    rows = []
    # Only "\n" ends a line: the other line ends that Python knows may stand inside a JSON text.
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
