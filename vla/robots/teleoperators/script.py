"""A script of commands in place of an operator, for tests and machines without a screen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from vla.errors import InputError
from vla.robots.teleoperators.teleoperator import WORDS, Jog


class Script:
    """Executes one command per step, such as x+ x+ close save (`teleoperator.WORDS`), then quits.

    An episode begins with its first movement: earlier waits are skipped.

    Raises:
        InputError: for an unknown command.
    """

    def __init__(self, words: Sequence[str]) -> None:
        if unknown := [word for word in words if word not in WORDS]:
            raise InputError(f"unknown command {unknown[0]!r} in the script: the commands are {' '.join(WORDS)}")
        self._rest = iter(_from_first_movement(words))

    @classmethod
    def from_file(cls, path: str) -> Script:
        """Reads commands from a text file, separated by white space. Raises InputError if it cannot be read."""
        try:
            return cls(Path(path).read_text(encoding="utf-8").split())
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot read the script {path}: {error}") from error

    def read(self) -> Jog:
        """The next command."""
        return WORDS[next(self._rest, "quit")]


def _from_first_movement(words: Sequence[str]) -> Iterator[str]:
    begun = False
    for word in words:
        jog = WORDS[word]
        begun = (begun or jog.moves) and jog.event is None
        if begun or jog.event:
            yield word
