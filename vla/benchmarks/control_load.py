"""Other work beside the control loop, and a loop without privileges, for `vla bench control`."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

BUSY = (sys.executable, "-c", "import os\nparent = os.getppid()\nwhile os.getppid() == parent: pass")
"""Ends with what started it."""
PROCESSES = 2
CAP_SYS_NICE = 1 << 23
VERSION = 0x20080522
"""Of the arguments of Linux's capget and capset (linux/capability.h): two words of each set."""


@contextmanager
def busy(count: int = PROCESSES) -> Iterator[None]:
    """Processes that take all the time they get, as nice as this one, while the block runs."""
    with ExitStack() as stack:
        for _ in range(count):
            process = stack.enter_context(subprocess.Popen(BUSY))
            stack.callback(process.kill)
        yield


@contextmanager
def without_privileges() -> Iterator[None]:
    """This thread may not take real-time priority in the block, as of a user without rights; programs that it starts
    have what the user has. Raises OSError where the system does not let go of it."""
    if sys.platform != "linux" or os.geteuid() != 0:
        yield
        return
    kernel = ctypes.CDLL(None, use_errno=True)
    header, sets = (ctypes.c_uint32 * 2)(VERSION, 0), (ctypes.c_uint32 * 6)()
    _call(kernel.capget(header, sets))
    effective = sets[0]
    sets[0] = effective & ~CAP_SYS_NICE
    _call(kernel.capset(header, sets))
    try:
        yield
    finally:
        sets[0] = effective
        _call(kernel.capset(header, sets))


def _call(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
