"""The terminal that a process reads keys from."""

from __future__ import annotations

import os


def in_background(terminal: int) -> bool:
    """Whether the process is not in the foreground of the terminal of this descriptor, so that reading suspends it."""
    try:
        return os.tcgetpgrp(terminal) != os.getpgrp()
    except OSError:  # it controls no processes, or is gone, which reading tells
        return False
