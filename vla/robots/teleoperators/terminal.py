"""The keys of a terminal, for an operator beside the arm."""

from __future__ import annotations

import os
import select
import termios
import tty
from collections.abc import Callable
from types import TracebackType
from typing import Any

from vla.common.terminal import in_background
from vla.robots.teleoperators.keyboard import KEYS
from vla.robots.teleoperators.teleoperator import Event

SEQUENCES = {
    **{"\x1b[A": 265, "\x1b[B": 264, "\x1b[D": 263, "\x1b[C": 262, "\x1b[5~": 266, "\x1b[6~": 267},
    **{str(digit): ord(str(digit)) for digit in (6, 7, 8, 9)},
    **{"\r": 257, "\n": 257, "\x7f": 259, "\x08": 259, "r": 259, "\x1b[H": 268, "\x1b[1~": 268},
    **{"q": 269, "\x1b[F": 269, "\x1b[4~": 269},
}
"""Maps the characters that a terminal sends for a key to the key's code in the viewer (`keyboard.KEYS`)."""


class Terminal:
    """Reads keys without echo and without waiting for enter, inside `with`.

    Args:
        press: Called with the code of each key that moves the arm.
        stream: The file descriptor of the terminal. If it is not a terminal, no keys are read.
    """

    def __init__(self, press: Callable[[int], None] | None = None, stream: int = 0) -> None:
        self._press, self._rest = press, ""
        self._stream, self.is_open = stream, os.isatty(stream)
        self._before: list[Any] = []

    def __enter__(self) -> Terminal:
        if self.is_open:
            self._before = termios.tcgetattr(self._stream)
            tty.setcbreak(self._stream)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.is_open:
            termios.tcsetattr(self._stream, termios.TCSADRAIN, self._before)

    def poll(self) -> Event | None:
        """The operator's last decision since the last call; does not wait."""
        while self.is_open and (
            (background := in_background(self._stream)) or select.select([self._stream], [], [], 0)[0]
        ):
            try:
                read = b"" if background else os.read(self._stream, 256)
            except OSError:
                read = b""
            if not read:  # the terminal is closed, or the process is in the background
                self.is_open = False
                return Event.QUIT
            self._rest += read.decode(errors="replace")
        event = None
        while self._rest:
            sequence = next((keys for keys in SEQUENCES if self._rest.startswith(keys)), None)
            if sequence is None and any(keys.startswith(self._rest) for keys in SEQUENCES):
                break  # incomplete sequence
            if sequence is not None:
                event = self._take(SEQUENCES[sequence]) or event
            self._rest = self._rest[len(sequence or " ") :]
        return event

    def _take(self, code: int) -> Event | None:
        word = KEYS[code]
        if word in {event.value for event in Event}:
            return Event(word)
        if self._press is not None:
            self._press(code)
        return None
