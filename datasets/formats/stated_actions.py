"""A source whose actions say what they are: as its format states them, as the user does, or as the numbers show."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from vla.datasets.action_inference import infer_actions, report_stated
from vla.datasets.episode_source import EpisodeSource, NamesFaults
from vla.embodiment import Embodiment
from vla.errors import InputError
from vla.types import Episode

Numbers = tuple[Float[np.ndarray, "_t s"], Float[np.ndarray, "_t a"]]
DECODED = 32
"""Episodes that are looked at, at most, where images must be decoded to see the numbers."""


@runtime_checkable
class HasNumbers(Protocol):
    """A source that reads an episode's state and action without its images."""

    def numbers(self, index: int) -> Numbers: ...


class StatedActions:
    """An `EpisodeSource` over another one, whose embodiment says what the actions are."""

    def __init__(self, source: EpisodeSource, embodiment: Embodiment, evidence: Sequence[str]) -> None:
        self._source, self._embodiment, self.evidence = source, embodiment, tuple(evidence)

    @property
    def embodiment(self) -> Embodiment:
        return self._embodiment

    @property
    def provenance(self) -> Mapping[str, Any]:
        """That of the source, with the evidence for what the actions are."""
        return {**self._source.provenance, "actions_stated": "; ".join(self.evidence)}

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Episode:
        return replace(self._source[index], embodiment=self._embodiment)

    def faults(self) -> Mapping[int, str]:
        return self._source.faults() if isinstance(self._source, NamesFaults) else {}


def state_actions(source: EpisodeSource, chosen: range, choices: Mapping[str, Any]) -> EpisodeSource:
    """The source where its format states what the actions are and nothing else is chosen, or else a `StatedActions`.

    A source's provenance has what is stated in `actions_stated`, and in `actions_usual` what its layout usually holds.

    `choices` are what the user says of them (`infer_actions`); the `chosen` episodes are looked at. Raises InputError
    where neither they nor the numbers say what the actions are.
    """
    if not choices and source.provenance.get("actions_stated"):
        return source
    known = {"grippers": list(source.embodiment.grippers)} if source.embodiment.grippers else {}
    try:
        embodiment, evidence = infer_actions(source.embodiment, _numbers(source, chosen), **{**known, **choices})
    except InputError:
        # What a layout's actions usually are decides where the numbers do not.
        if choices or not (usual := source.provenance.get("actions_usual")):
            raise
        embodiment = source.embodiment
        evidence = report_stated(embodiment, f"{usual}, as the numbers do not tell; actions=… says otherwise")
    return StatedActions(source, embodiment, evidence)


def _numbers(source: EpisodeSource, chosen: range) -> Iterator[Numbers]:
    """State and action of episodes, evenly spread over the chosen; unreadable ones are passed over.

    Raises InputError that says why the first cannot be read, where none can.
    """
    read, first = 0, ""
    few = not isinstance(source, HasNumbers)
    count = min(len(chosen), DECODED if few else len(chosen))
    for position in np.unique(np.linspace(0, len(chosen) - 1, count).astype(int)).tolist() if count else ():
        try:
            if isinstance(source, HasNumbers):
                yield source.numbers(chosen[position])
            else:
                episode = source[chosen[position]]
                yield episode.state, episode.action
            read += 1
        except (InputError, OSError, ValueError, KeyError, TypeError) as error:
            # Named when the episode is converted.
            first = first or f"episode {chosen[position]} cannot be read: {error}"
    if first and not read:
        raise InputError(first)
