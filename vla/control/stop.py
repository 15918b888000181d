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
    """Latched emergency stop: once tripped it stays tripped and keeps the first reason.

    Args:
        sources: Functions that `poll` calls. Each returns a reason to stop, or None.
    """

    def __init__(self, sources: Sequence[Callable[[], str | None]] = ()) -> None:
        self._sources = sources
        self.reason: str | None = None

    def trip(self, reason: str) -> None:
        """Trips the stop."""
        self.reason = self.reason or reason

    def poll(self) -> str | None:
        """Checks the sources; returns the reason, or None if the stop is not tripped."""
        for source in self._sources if self.reason is None else ():
            if (reason := source()) is not None:
                self.trip(reason)
        return self.reason

    @contextmanager
    def signals(self) -> Iterator[None]:
        """Lets `SIGNALS` trip the stop inside the block. Has no effect outside the main thread."""
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
    """A stop source: the standard input of the operator.

    It trips on the enter key in a terminal and on a line in a pipe. It also trips when either is closed, or when the
    process is no longer in the terminal's foreground, because then no key can stop the arm. Files and /dev/null, as
    used by scripts, never trip it.
    """
    try:
        number = sys.stdin.fileno()
        kind = os.fstat(number).st_mode
    except (AttributeError, OSError, ValueError):  # missing, closed, or not a file
        return None
    try:
        termios.tcgetattr(number)
        if in_background(number):
            return "the process is in the background, where no key stops the arm"
    except termios.error as error:
        if error.args[0] in (errno.EIO, errno.ENXIO):
            return "the terminal is gone"
        if not stat.S_ISFIFO(kind) and not stat.S_ISSOCK(kind):  # not a terminal
            return None
    try:
        if not select.select([number], [], [], 0)[0]:
            return None
        line = os.read(number, 4096)
    except OSError as error:
        return f"the terminal is gone: {error.strerror}"
    return "emergency stop: key" if line else "the operator is gone: the standard input has ended"


def stop_sources(file: str | None, gamepad: str | None, stack: ExitStack) -> list[Callable[[], str | None]]:
    """The stop sources `stop_file` and `stop_gamepad` for the arguments that are not None."""
    files = [] if file is None else [stop_file(file)]
    return files if gamepad is None else [*files, stop_gamepad(gamepad, stack)]


def stop_file(path: str) -> Callable[[], str | None]:
    """A stop source that trips as soon as the file `path` exists.

    Raises:
        InputError: if the file exists already.
    """
    if os.path.lexists(path):
        raise InputError(f"stop_file={path} exists already: remove it, for it stops the arm")
    return lambda: f"emergency stop: {path}" if os.path.lexists(path) else None


def stop_gamepad(path: str, stack: ExitStack) -> Callable[[], str | None]:
    """A stop source that trips on any button of a gamepad, or when it is disconnected.

    Args:
        path: The joystick device.
        stack: Closes the device.

    Raises:
        InputError: if the device cannot be opened.
    """
    pad = Gamepad(path)
    stack.callback(pad.close)

    def pressed() -> str | None:
        try:
            return "emergency stop: gamepad" if pad.pressed() else None
        except InputError as error:
            return f"emergency stop: {error}"

    return pressed
