"""Errors that say that the disk is full, or that a file may not grow, whatever library raised them."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

from vla.errors import InputError

NUMBERS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
WORDS = re.compile(
    r"no space left on device|disk quota exceeded|file too large|disk is full|os error (28|27|122)\b"
    r"|disk i/o error|file write failed|file-writer thread shut down|\d+ requested and \d+ written",
    re.IGNORECASE,
)
"""How libraries say it that keep no error number: SQLite, safetensors, torch, numpy, Rerun."""


def explain_full_disk(error: BaseException) -> str:
    """One line on what could not be written, and what to do; empty where the error, or its cause, is of another kind.

    What was stored before is whole: every writer of ours replaces files only by whole ones.
    """
    for cause in _causes(error):
        known = isinstance(cause, OSError) and cause.errno in NUMBERS
        if not known and (isinstance(cause, OSError) and cause.errno or not WORDS.search(str(cause))):
            continue
        file = cause.filename if isinstance(cause, OSError) and cause.filename else ""
        reason = cause.strerror if isinstance(cause, OSError) and cause.strerror else str(cause)
        what = f"{file} cannot be written" if file else "a file cannot be written"
        return f"{what}: {' '.join(reason.split())}: free space, and run the same command again"
    return ""


@contextmanager
def explaining_full_disk() -> Iterator[None]:
    """Turns what a library raises inside the block where the disk is full into an InputError that says so."""
    try:
        yield
    except Exception as error:
        if told := explain_full_disk(error):
            raise InputError(told) from error
        raise


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, and those that it was raised from or during."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or cause.__context__
