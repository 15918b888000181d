"""Terminal input of a process."""

from __future__ import annotations

import os


def in_background(terminal: int) -> bool:
    """Whether the process runs in the background of this terminal (a file descriptor), where reading suspends it."""
    try:
        return os.tcgetpgrp(terminal) != os.getpgrp()
    except OSError:  # not a controlling terminal, or closed, which the next read reports
        return False
