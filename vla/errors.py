"""The one exception that means "the input is wrong": the command line prints it and exits with 2."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Literal


class InputError(ValueError):
    """Bad input from the user. The message names what is wrong and what to do about it."""


@contextmanager
def reading(what: object, cure: str) -> Iterator[None]:
    """Turns what damaged content raises inside the block into an InputError: `what` is damaged, and what to do."""
    try:
        yield
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, struct.error) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else f"{error}"
        raise InputError(f"{what} is damaged ({reason}): {cure}") from error


def suggestion(name: object, known: Iterable[str]) -> str:
    """ " (did you mean 'pick'?)" for the nearest of the known names, and nothing where none is near."""
    near = get_close_matches(str(name), list(known), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def unknown(kind: str, name: object, known: Iterable[str]) -> InputError:
    """The error for a name that is none of the known ones, with the nearest of them first."""
    known = list(known)
    return InputError(f"unknown {kind} {name!r}{suggestion(name, known)}; known: {', '.join(known)}")


Outcome = Literal["done", "stopped", "robot", "policy", "error"]
"""How a run ended: as planned, by the operator, by a fault of the robot or of the policy, by an exception."""
EXIT_CODES: dict[Outcome, int] = {"done": 0, "error": 1, "stopped": 3, "robot": 4, "policy": 5}
"""Of a command, by how its run ended; 2 is bad input."""


class Failure(RuntimeError):
    """What ended a command whose input was right: the command line prints it on one line and exits with `code`."""

    def __init__(self, message: str, code: int = 1) -> None:
        super().__init__(message)
        self.code = code
