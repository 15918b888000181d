"""CRC-32C of bytes that are known by their CRC alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from crc32c import crc32c


@dataclass(frozen=True)
class Digest:
    """The CRC-32C of `size` bytes."""

    crc: int
    size: int


def crc_followed_by(crc: int, following: Digest) -> int:
    """The CRC-32C of bytes with this `crc` and of those that follow them, in time that grows with the log of the size.

    A CRC's change by one zero byte is linear over GF(2): a matrix, here its columns. Its power for all following bytes
    is made by squaring, as zlib's crc32_combine does.
    """
    at_zero = crc32c(b"\0", 0)
    matrix = [crc32c(b"\0", 1 << bit) ^ at_zero for bit in range(32)]
    size = following.size
    while size:
        if size & 1:
            crc = _times(matrix, crc)
        matrix = [_times(matrix, column) for column in matrix]
        size >>= 1
    return crc ^ following.crc


def _times(matrix: Sequence[int], vector: int) -> int:
    product = 0
    for bit, column in enumerate(matrix):
        if vector >> bit & 1:
            product ^= column
    return product
