"""A text in place of an operator, for tests and where there is no screen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from vla.errors import InputError
from vla.robots.teleoperators.teleoperator import WORDS, Jog


class Script:
    """One command a step, such as x+ x+ close save (`protocol.WORDS`); then quits. InputError for an unknown one.

    An episode begins with its first movement: waits before that are left out.
    """

    def __init__(self, words: Sequence[str]) -> None:
        if unknown := [word for word in words if word not in WORDS]:
            raise InputError(f"unknown command {unknown[0]!r} in the script: the commands are {' '.join(WORDS)}")
        self._rest = iter(_from_first_movement(words))

    @classmethod
    def from_file(cls, path: str) -> Script:
        """The commands of a text file, between spaces or line ends. Raises InputError when it cannot be read."""
        try:
            return cls(Path(path).read_text(encoding="utf-8").split())
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"cannot read the script {path}: {error}") from error

    def read(self) -> Jog:
        return WORDS[next(self._rest, "quit")]


def _from_first_movement(words: Sequence[str]) -> Iterator[str]:
    begun = False
    for word in words:
        jog = WORDS[word]
        begun = (begun or jog.moves) and jog.event is None
        if begun or jog.event:
            yield word
