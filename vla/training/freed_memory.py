"""What the C library does with memory that tensors on the processor have freed."""

from __future__ import annotations

import ctypes

TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4
"""Of mallopt(3)."""
MOST = 2**31 - 1
SPARE = 64 << 20
"""Bytes by which the heap grows at least."""


def keep_freed_memory() -> None:
    """Freed memory stays with this process, for the tensors of the next step.

    Else glibc gives each large tensor fresh pages, and the kernel clears them at the first touch: 41 of 62 ms that a
    process took for a batch of 32 images of 512 x 512 pixels. Other C libraries are left alone.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in ((MMAP_MAX, 0), (TRIM_THRESHOLD, MOST), (TOP_PAD, SPARE)):
            mallopt(option, value)
