"""Real-time priority of a thread."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def realtime_priority() -> Iterator[bool]:
    """Gives this thread real-time priority in the block (Linux SCHED_FIFO), if the system permits it.

    Threads that it starts do not inherit the priority.

    Yields:
        Whether the priority was granted.
    """
    if sys.platform != "linux":
        yield False
        return
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(10))
    except PermissionError:
        yield False
        return
    try:
        yield True
    finally:
        os.sched_setscheduler(0, *before)
