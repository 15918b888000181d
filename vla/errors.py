"""Exceptions with a message for the user: the command line prints it on one line and exits with a code."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Literal


class InputError(ValueError):
    """Invalid input from the user. The message states what is wrong and what to do; the exit code is 2."""


@contextmanager
def reading(what: object, cure: str) -> Iterator[None]:
    """Converts exceptions that damaged content raises in the block into an InputError.

    Args:
        what: The damaged file, for the message.
        cure: What to do, for the message.
    """
    try:
        yield
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, struct.error) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else f"{error}"
        raise InputError(f"{what} is damaged ({reason}): {cure}") from error


def suggestion(name: object, known: Iterable[str]) -> str:
    """The text " (did you mean 'pick'?)" with the most similar known name, or "" if none is similar."""
    near = get_close_matches(str(name), list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def unknown(kind: str, name: object, known: Iterable[str]) -> InputError:
    """The error for an unknown name, with a suggestion and the known names."""
    known = list(known)
    return InputError(f"unknown {kind} {name!r}{suggestion(name, known)}; known: {', '.join(known)}")


Outcome = Literal["done", "stopped", "robot", "policy", "error"]
"""The outcome of a run: as planned, stopped by the operator, a fault of the robot or of the policy, an exception."""
EXIT_CODES: dict[Outcome, int] = {"done": 0, "error": 1, "stopped": 3, "robot": 4, "policy": 5}
"""Exit code of a command by the outcome of its run; 2 is invalid input."""


class Failure(RuntimeError):
    """A command failed although its input was valid: the command line prints the message and exits with `code`."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code
