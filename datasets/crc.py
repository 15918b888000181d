"""CRC-32C of concatenated bytes from the CRCs of the pieces."""

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
    """The CRC-32C of bytes with this `crc` followed by the bytes of a digest, in time logarithmic in their number.

    Appending one zero byte changes a CRC by a linear map over GF(2), here stored as the columns of its matrix. The map
    for all following bytes is computed by repeated squaring, as in zlib's crc32_combine.
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
