"""The latched emergency stop."""

from __future__ import annotations

import errno
import os
import select
import signal
import stat
import sys
import termios
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import FrameType

from vla.common.terminal import in_background
from vla.errors import InputError
from vla.robots.teleoperators.gamepad import Gamepad

SIGNALS = {
    signal.SIGINT: "interrupted",
    signal.SIGTERM: "terminated",
    signal.SIGUSR1: "emergency stop: SIGUSR1",
    signal.SIGHUP: "the terminal is gone: SIGHUP",
    signal.SIGTSTP: "interrupted: ctrl-Z",
}


class EmergencyStop:
    """Once tripped it stays so, and keeps the first reason.

    `poll` also asks `sources`, such as a topic: each says a reason, or None while all is well.
    """

    def __init__(self, sources: Sequence[Callable[[], str | None]] = ()) -> None:
        self._sources = sources
        self.reason: str | None = None

    def trip(self, reason: str) -> None:
        self.reason = self.reason or reason

    def poll(self) -> str | None:
        for source in self._sources if self.reason is None else ():
            if (reason := source()) is not None:
                self.trip(reason)
        return self.reason

    @contextmanager
    def signals(self) -> Iterator[None]:
        """`SIGNALS` trip it; off the main thread, nothing changes."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def tripped(number: int, _: FrameType | None) -> None:
            self.trip(SIGNALS[signal.Signals(number)])

        before = {number: signal.signal(number, tripped) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def operator() -> str | None:
    """A source: the enter key, where the standard input is a terminal, or a line of a pipe; and that either is gone, or
    the process is no longer in the terminal's foreground, for then nobody can stop the arm. Files and /dev/null, which
    scripts give, say nothing."""
    try:
        number = sys.stdin.fileno()
        kind = os.fstat(number).st_mode
    except (AttributeError, OSError, ValueError):  # none, a closed one, or one that is no file
        return None
    try:
        termios.tcgetattr(number)
        if in_background(number):
            return "the process is in the background, where no key stops the arm"
    except termios.error as error:
        if error.args[0] in (errno.EIO, errno.ENXIO):
            return "the terminal is gone"
        if not stat.S_ISFIFO(kind) and not stat.S_ISSOCK(kind):  # it never was one
            return None
    try:
        if not select.select([number], [], [], 0)[0]:
            return None
        line = os.read(number, 4096)
    except OSError as error:
        return f"the terminal is gone: {error.strerror}"
    return "emergency stop: key" if line else "the operator is gone: the standard input has ended"


def stop_sources(file: str | None, gamepad: str | None, stack: ExitStack) -> list[Callable[[], str | None]]:
    """Sources of `stop_file` and `stop_gamepad`, of those that are given."""
    files = [] if file is None else [stop_file(file)]
    return files if gamepad is None else [*files, stop_gamepad(gamepad, stack)]


def stop_file(path: str) -> Callable[[], str | None]:
    """A source: the file at `path`, as soon as there is one. Raises InputError where there is one already."""
    if os.path.lexists(path):
        raise InputError(f"stop_file={path} exists already: remove it, for it stops the arm")
    return lambda: f"emergency stop: {path}" if os.path.lexists(path) else None


def stop_gamepad(path: str, stack: ExitStack) -> Callable[[], str | None]:
    """A source: any button of the joystick device at `path`, and that it is gone. `stack` closes it. Raises InputError
    where there is none."""
    pad = Gamepad(path)
    stack.callback(pad.close)

    def pressed() -> str | None:
        try:
            return "emergency stop: gamepad" if pad.pressed() else None
        except InputError as error:
            return f"emergency stop: {error}"

    return pressed
