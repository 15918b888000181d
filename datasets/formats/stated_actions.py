"""A source with known action modes: as stated by its format or by the user, or as inferred from the data."""

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
"""Maximum number of episodes to examine if reading their numbers requires decoding images."""


@runtime_checkable
class HasNumbers(Protocol):
    """A source that reads an episode's state and action without its images."""

    def numbers(self, index: int) -> Numbers:
        """The state and action of episode `index`."""
        ...


class StatedActions:
    """A wrapper of an `EpisodeSource` with an embodiment that states the action modes."""

    def __init__(self, source: EpisodeSource, embodiment: Embodiment, evidence: Sequence[str]) -> None:
        self._source, self._embodiment, self.evidence = source, embodiment, tuple(evidence)

    @property
    def embodiment(self) -> Embodiment:
        """The embodiment of the source, with the stated action modes."""
        return self._embodiment

    @property
    def provenance(self) -> Mapping[str, Any]:
        """The provenance of the source, with the evidence for the action modes."""
        return {**self._source.provenance, "actions_stated": "; ".join(self.evidence)}

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Episode:
        return replace(self._source[index], embodiment=self._embodiment)

    def faults(self) -> Mapping[int, str]:
        """The faults of the source by episode; empty if its format cannot list them."""
        return self._source.faults() if isinstance(self._source, NamesFaults) else {}


def state_actions(source: EpisodeSource, selected: range, choices: Mapping[str, Any]) -> EpisodeSource:
    """The source itself if its format states the action modes and `choices` is empty; otherwise a `StatedActions`.

    The source's provenance has the statement in `actions_stated`, and the usual modes of its layout in
    `actions_usual`.

    Args:
        source: the episodes.
        selected: the episodes to examine.
        choices: the user's options (`infer_actions`).

    Raises:
        InputError: the action modes are neither stated nor can be inferred.
    """
    if not choices and source.provenance.get("actions_stated"):
        return source
    stated = {"grippers": list(source.embodiment.grippers)} if source.embodiment.grippers else {}
    try:
        embodiment, evidence = infer_actions(source.embodiment, _numbers(source, selected), **{**stated, **choices})
    except InputError:
        # If the data do not show the modes, those that are usual for the layout apply.
        if choices or not (usual := source.provenance.get("actions_usual")):
            raise
        embodiment = source.embodiment
        evidence = report_stated(embodiment, f"{usual}, as the data do not show it; actions=… overrides this")
    return StatedActions(source, embodiment, evidence)


def _numbers(source: EpisodeSource, selected: range) -> Iterator[Numbers]:
    """State and action of episodes, evenly spread over the selected ones. Unreadable episodes are skipped.

    Raises InputError with the first reason if no episode can be read.
    """
    read, first = 0, ""
    few = not isinstance(source, HasNumbers)
    count = min(len(selected), DECODED if few else len(selected))
    for position in np.unique(np.linspace(0, len(selected) - 1, count).astype(int)).tolist() if count else ():
        try:
            if isinstance(source, HasNumbers):
                yield source.numbers(selected[position])
            else:
                episode = source[selected[position]]
                yield episode.state, episode.action
            read += 1
        except (InputError, OSError, ValueError, KeyError, TypeError) as error:
            # The conversion of the episode reports its error.
            first = first or f"episode {selected[position]} cannot be read: {error}"
    if first and not read:
        raise InputError(first)
