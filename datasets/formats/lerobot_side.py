"""The side file meta/vla.json, for information that a LeRobot dataset cannot represent."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vla.datasets.source_files import read_json_object
from vla.embodiment import Embodiment, declares_actions
from vla.errors import InputError
from vla.types import Episode, Span

FORMAT = "vla.lerobot-side"
VERSION = 1


@dataclass(frozen=True)
class SideEpisode:
    """The information on an episode that its features do not contain."""

    length: int
    instruction: str
    success: bool | None
    info: Mapping[str, Any]
    paraphrases: Sequence[str]
    spans: Sequence[Sequence[Any]]
    """A list of (start, stop, instruction)."""
    absent: Sequence[str] = ()
    """Streams that only other episodes have, by their names in a store: "points", "depth/wrist"."""

    @classmethod
    def of(cls, episode: Episode, absent: Sequence[str]) -> SideEpisode:
        """The entry of an episode without the `absent` streams."""
        return cls(
            length=len(episode),
            instruction=episode.instruction,
            success=None if episode.success is None else bool(episode.success),
            info=dict(episode.info),
            paraphrases=list(episode.paraphrases),
            spans=[[span.start, span.stop, span.instruction] for span in episode.spans],
            absent=list(absent),
        )

    def words(self) -> dict[str, Any]:
        """The fields instruction, paraphrases and spans of the episode."""
        spans = tuple(Span(*span) for span in self.spans)
        return {"instruction": self.instruction, "paraphrases": tuple(self.paraphrases), "spans": spans}


@dataclass(frozen=True)
class Side:
    """The content of the file. `rows` is the shape of a step of each extra, which LeRobot's schema does not keep."""

    embodiment: Embodiment
    provenance: Mapping[str, Any]
    episodes: Sequence[SideEpisode]
    rows: Mapping[str, Sequence[int]] = field(default_factory=dict)
    declares_actions: bool = True
    """Whether it states the action modes; files of older versions do not."""

    def write(self, root: Path) -> None:
        """Writes the file. Raises InputError if an episode's info cannot be stored as JSON."""
        content = {"format": FORMAT, "version": VERSION, **asdict(self), "embodiment": self.embodiment.to_dict()}
        del content["declares_actions"]
        try:
            text = json.dumps(content)
        except (TypeError, ValueError) as error:
            raise InputError(f"an episode's info cannot be stored as JSON: {error}") from error
        (root / "meta" / "vla.json").write_text(text)

    @classmethod
    def read(cls, root: Path, lengths: Sequence[int]) -> Side | None:
        """The dataset's file; None if there is none. `lengths` are the lengths of the dataset's episodes.

        Raises InputError if it is damaged, newer, or of other episodes.
        """
        path = root / "meta" / "vla.json"
        if not path.is_file():
            return None
        try:
            content = read_json_object(path)
            if content["format"] != FORMAT or content["version"] != VERSION:
                raise InputError(f"{path} has version {content['version']} of {content['format']}, not {VERSION}")
            side = cls(
                embodiment=Embodiment.from_dict(content["embodiment"]),
                provenance=content["provenance"],
                episodes=[SideEpisode(**episode) for episode in content["episodes"]],
                rows=content["rows"],
                declares_actions=declares_actions(content["embodiment"]),
            )
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{path} is damaged ({error}): remove it to read the dataset without it") from error
        if [episode.length for episode in side.episodes] != list(lengths):
            raise InputError(f"{path} is of other episodes: the dataset was edited; remove it to read without it")
        return side
