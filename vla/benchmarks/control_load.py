"""CPU load and reduced privileges for `vla bench control`."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

BUSY = (sys.executable, "-c", "import os\nparent = os.getppid()\nwhile os.getppid() == parent: pass")
"""A busy process that ends with its parent."""
PROCESSES = 2
CAP_SYS_NICE = 1 << 23
VERSION = 0x20080522
"""The version of the arguments of Linux's capget and capset (linux/capability.h), with two words per set."""


@contextmanager
def busy(count: int = PROCESSES) -> Iterator[None]:
    """Runs busy processes with the priority of this process."""
    with ExitStack() as stack:
        for _ in range(count):
            process = stack.enter_context(subprocess.Popen(BUSY))
            stack.callback(process.kill)
        yield


@contextmanager
def without_privileges() -> Iterator[None]:
    """Removes the privilege of real-time priority from this thread, but not from programs that it starts.

    Raises:
        OSError: the system call fails.
    """
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
