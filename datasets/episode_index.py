"""The JSON record of an episode in a store's index, and the summary of a store."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
from crc32c import crc32c

from vla.datasets.crc import Digest, crc_followed_by
from vla.datasets.folder import Buffer
from vla.embodiment import Embodiment
from vla.errors import InputError
from vla.types import Episode, Span

EDITABLE = ("instruction", "success", "paraphrases", "spans", "info")
"""Fields that can change without touching the arrays."""


@dataclass(frozen=True)
class EpisodeRecord:
    """An episode's entry in the index: frames `offset` to `offset + length` of every array."""

    offset: int
    length: int
    instruction: str
    success: bool | None
    info: Mapping[str, Any]
    checksum: int
    """`checksum` of the episode's arrays."""
    streams: tuple[str, ...] = ()
    """The episode's optional arrays: all but state, action, time and images."""
    paraphrases: tuple[str, ...] = ()
    spans: tuple[Span, ...] = ()

    @property
    def frames(self) -> slice:
        """The range of the episode's frames in the store's arrays."""
        return slice(self.offset, self.offset + self.length)

    @classmethod
    def of(cls, episode: Episode, offset: int, streams: tuple[str, ...]) -> EpisodeRecord:
        """The record of an episode whose frames begin at `offset`, with the checksum 0."""
        return cls(
            offset=offset,
            length=len(episode),
            instruction=episode.instruction,
            success=None if episode.success is None else bool(episode.success),
            info=dict(episode.info),
            checksum=0,
            streams=streams,
            paraphrases=tuple(episode.paraphrases),
            spans=tuple(episode.spans),
        )

    def edited(self, changes: Mapping[str, Any]) -> EpisodeRecord:
        """A copy with changed values of fields in `EDITABLE`. Raises InputError for other fields."""
        if unknown := changes.keys() - set(EDITABLE):
            raise InputError(f"of a stored episode, {', '.join(EDITABLE)} can change, not {', '.join(sorted(unknown))}")
        values: dict[str, Any] = {n: tuple(value) if isinstance(value, list) else value for n, value in changes.items()}
        return replace(self, **values)

    def to_json(self) -> str:
        """The record as JSON. Raises InputError if `info` cannot be stored as JSON."""
        try:
            return json.dumps(asdict(self))
        except (TypeError, ValueError) as error:
            raise InputError(f"episode's info cannot be stored as JSON: {error}") from error

    @classmethod
    def from_json(cls, text: str) -> EpisodeRecord:
        """The record in a JSON text. Raises ValueError or TypeError if it is not a record."""
        values = json.loads(text)
        values |= {name: tuple(values[name]) for name in ("streams", "paraphrases")}
        values["spans"] = tuple(Span(**span) for span in values["spans"])
        return cls(**{field.name: values[field.name] for field in fields(cls)})


@dataclass(frozen=True)
class StoreSummary:
    """A summary of a store. `images` maps each camera to (height, width) in pixels."""

    path: str
    embodiment: str
    episodes: int
    frames: int
    seconds: float
    successes: int
    unknown: int
    """Episodes without a success label."""
    instructions: Mapping[str, int]
    images: Mapping[str, tuple[int, int]]

    @classmethod
    def of(
        cls, path: str, robot: Embodiment, records: Sequence[EpisodeRecord], sizes: Mapping[str, tuple[int, ...]]
    ) -> StoreSummary:
        """The summary of a store with these records. `sizes` are the shapes of the cameras' images."""
        loaded = list(records)
        frames = sum(record.length for record in loaded)
        return cls(
            path=path,
            embodiment=robot.name,
            episodes=len(loaded),
            frames=frames,
            seconds=frames / robot.control_hz,
            successes=sum(record.success is True for record in loaded),
            unknown=sum(record.success is None for record in loaded),
            instructions=Counter(record.instruction for record in loaded),
            images={camera: (size[0], size[1]) for camera, size in sizes.items()},
        )


def checksum(pieces: Iterable[Buffer | np.ndarray | Digest]) -> int:
    """CRC-32C over the concatenated bytes of the pieces."""
    value = 0
    for piece in pieces:
        if isinstance(piece, Digest):
            value = crc_followed_by(value, piece)
        else:
            content = np.ascontiguousarray(piece).data.cast("B") if isinstance(piece, np.ndarray) else piece
            value = crc32c(content, value)
    return value
