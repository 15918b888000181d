"""What the index of an episode store says of an episode: one JSON record."""

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
"""What may change without touching the arrays."""


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
    """The arrays that the episode has beyond state, action, time and images."""
    paraphrases: tuple[str, ...] = ()
    spans: tuple[Span, ...] = ()

    @property
    def frames(self) -> slice:
        return slice(self.offset, self.offset + self.length)

    @classmethod
    def of(cls, episode: Episode, offset: int, streams: tuple[str, ...]) -> EpisodeRecord:
        """The entry of an episode whose frames begin at `offset`, but for the checksum."""
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
        """With other values of fields in `EDITABLE`. Raises InputError for another field."""
        if unknown := changes.keys() - set(EDITABLE):
            raise InputError(f"of a stored episode, {', '.join(EDITABLE)} can change, not {', '.join(sorted(unknown))}")
        held: dict[str, Any] = {n: tuple(value) if isinstance(value, list) else value for n, value in changes.items()}
        return replace(self, **held)

    def to_json(self) -> str:
        """Raises InputError when `info` holds something that JSON cannot."""
        try:
            return json.dumps(asdict(self))
        except (TypeError, ValueError) as error:
            raise InputError(f"episode's info cannot be stored as JSON: {error}") from error

    @classmethod
    def from_json(cls, text: str) -> EpisodeRecord:
        """Raises ValueError or TypeError when the text is no record."""
        values = json.loads(text)
        values |= {name: tuple(values[name]) for name in ("streams", "paraphrases")}
        values["spans"] = tuple(Span(**span) for span in values["spans"])
        return cls(**{field.name: values[field.name] for field in fields(cls)})


@dataclass(frozen=True)
class StoreSummary:
    """What a person wants to know of a store at a glance; `images` maps each camera to (height, width)."""

    path: str
    embodiment: str
    episodes: int
    frames: int
    seconds: float
    successes: int
    unknown: int
    """Episodes of which nobody has said whether they succeeded."""
    instructions: Mapping[str, int]
    images: Mapping[str, tuple[int, int]]

    @classmethod
    def of(
        cls, path: str, robot: Embodiment, records: Sequence[EpisodeRecord], sizes: Mapping[str, tuple[int, ...]]
    ) -> StoreSummary:
        """`sizes` are the shapes of the cameras' images."""
        known = list(records)
        frames = sum(record.length for record in known)
        return cls(
            path=path,
            embodiment=robot.name,
            episodes=len(known),
            frames=frames,
            seconds=frames / robot.control_hz,
            successes=sum(record.success is True for record in known),
            unknown=sum(record.success is None for record in known),
            instructions=Counter(record.instruction for record in known),
            images={camera: (size[0], size[1]) for camera, size in sizes.items()},
        )


def checksum(parts: Iterable[Buffer | np.ndarray | Digest]) -> int:
    """CRC-32C over the bytes of the parts, one after another."""
    value = 0
    for part in parts:
        if isinstance(part, Digest):
            value = crc_followed_by(value, part)
        else:
            value = crc32c(np.ascontiguousarray(part).data.cast("B") if isinstance(part, np.ndarray) else part, value)
    return value
