"""Whether this process can open a window."""

from __future__ import annotations

import os
import sys


def has_screen() -> bool:
    """Whether a window can open; only Linux and its like can do without one."""
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("WAYLAND_DISPLAY") or os.environ.get("DISPLAY"))
