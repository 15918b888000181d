"""Whether this process can open a window."""

from __future__ import annotations

import os
import sys

from vla.errors import InputError


def has_screen() -> bool:
    """Whether a window can open; always true on macOS and Windows."""
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("WAYLAND_DISPLAY") or os.environ.get("DISPLAY"))


def no_screen(instead: str) -> InputError:
    """The error if no window can open; `instead` is the advice in its message."""
    return InputError(f"there is no screen for the viewer: {instead}")
