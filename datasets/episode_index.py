"""The index of an episode store: one JSON record an episode."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import zarr
from crc32c import crc32c

from vla.errors import InputError


@dataclass(frozen=True)
class EpisodeRecord:
    """An episode's entry in the index: frames `offset` to `offset + length` of every array."""

    offset: int
    length: int
    instruction: str
    success: bool
    info: Mapping[str, Any]
    has_chunks: bool
    checksum: int
    """`checksum` of the episode's arrays."""
    has_points: bool = False

    @property
    def frames(self) -> slice:
        return slice(self.offset, self.offset + self.length)

    def to_json(self) -> str:
        """Raises InputError when `info` holds something that JSON cannot."""
        try:
            return json.dumps(asdict(self))
        except (TypeError, ValueError) as error:
            raise InputError(f"episode's info cannot be stored as JSON: {error}") from error


def checksum(arrays: Mapping[str, np.ndarray]) -> int:
    """CRC-32C over the arrays' bytes, in the mapping's order."""
    value = 0
    for array in arrays.values():
        value = crc32c(np.ascontiguousarray(array).data.cast("B"), value)
    return value


def read_records(index: zarr.Array[Any]) -> tuple[EpisodeRecord, ...]:
    """The committed records. Raises ValueError or TypeError when the index is damaged."""
    texts = [str(text) for text in np.asarray(index[:])]
    # An empty last entry is an append that was cut off before its commit.
    while texts and not texts[-1]:
        texts.pop()
    records = tuple(EpisodeRecord(**json.loads(text)) for text in texts)
    end = 0
    for position, record in enumerate(records):
        if record.offset != end:
            raise ValueError(f"episode {position} starts at frame {record.offset}, not {end}")
        end += record.length
    return records
