"""Recognises errors of a full disk, or of a file size limit, from any library."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

from vla.errors import InputError

ERROR_NUMBERS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
MESSAGES = re.compile(
    r"no space left on device|disk quota exceeded|file too large|disk is full|os error (28|27|122)\b"
    r"|disk i/o error|file write failed|file-writer thread shut down|\d+ requested and \d+ written",
    re.IGNORECASE,
)
"""Messages of libraries that do not preserve the error number: SQLite, safetensors, torch, numpy, Rerun."""


def explain_full_disk(error: BaseException) -> str:
    """A one-line message about the file that could not be written; "" for other errors.

    The causes of the error are checked too. Existing data remains valid, because all files are replaced atomically.
    """
    for cause in _causes(error):
        known = isinstance(cause, OSError) and cause.errno in ERROR_NUMBERS
        if not known and (isinstance(cause, OSError) and cause.errno or not MESSAGES.search(str(cause))):
            continue
        file = cause.filename if isinstance(cause, OSError) and cause.filename else ""
        reason = cause.strerror if isinstance(cause, OSError) and cause.strerror else str(cause)
        what = f"{file} cannot be written" if file else "a file cannot be written"
        return f"{what}: {' '.join(reason.split())}: free space, and run the same command again"
    return ""


@contextmanager
def explaining_full_disk() -> Iterator[None]:
    """Converts an exception in the block that is due to a full disk into an InputError."""
    try:
        yield
    except Exception as error:
        if message := explain_full_disk(error):
            raise InputError(message) from error
        raise


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, and its chain of causes and contexts."""
    visited: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in visited:
        visited.add(id(cause))
        yield cause
        cause = cause.__cause__ or cause.__context__
