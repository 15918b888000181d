"""The keys of a terminal, for an operator who stands beside the arm."""

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
"""What a terminal sends for a key, and the key's code as the viewer has it (`keyboard.KEYS`)."""


class Terminal:
    """While open, keys count at once and are not shown. Where `stream`, a file descriptor, is no terminal, none do.

    Keys that move the arm go to `press`, as codes.
    """

    def __init__(self, press: Callable[[int], None] | None = None, stream: int = 0) -> None:
        self._press, self._rest = press, ""
        self._stream, self.there = stream, os.isatty(stream)
        self._before: list[Any] = []

    def __enter__(self) -> Terminal:
        if self.there:
            self._before = termios.tcgetattr(self._stream)
            tty.setcbreak(self._stream)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.there:
            termios.tcsetattr(self._stream, termios.TCSADRAIN, self._before)

    def poll(self) -> Event | None:
        """What the operator decided since the last call, the last of it; returns at once."""
        while self.there and ((away := in_background(self._stream)) or select.select([self._stream], [], [], 0)[0]):
            try:
                read = b"" if away else os.read(self._stream, 256)
            except OSError:
                read = b""
            if not read:  # the terminal is gone or another's, and the operator with it
                self.there = False
                return Event.QUIT
            self._rest += read.decode(errors="replace")
        event = None
        while self._rest:
            known = next((keys for keys in SEQUENCES if self._rest.startswith(keys)), None)
            if known is None and any(keys.startswith(self._rest) for keys in SEQUENCES):
                break  # the rest of it is to come
            if known is not None:
                event = self._take(SEQUENCES[known]) or event
            self._rest = self._rest[len(known or " ") :]
        return event

    def _take(self, code: int) -> Event | None:
        word = KEYS[code]
        if word in {event.value for event in Event}:
            return Event(word)
        if self._press is not None:
            self._press(code)
        return None
