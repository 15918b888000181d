"""What every format is read as: a sequence of episodes of one embodiment.

Each format is a module of this folder with `detect(path) -> bool`, which is cheap, and
`open_source(path, **options) -> EpisodeSource`, which raises InputError that names what is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from vla.embodiment import Embodiment
from vla.types import Episode


@runtime_checkable
class EpisodeSource(Protocol):
    """Episodes in a foreign format, each decoded when it is asked for."""

    @property
    def embodiment(self) -> Embodiment:
        """The interface that all episodes share."""
        ...

    @property
    def provenance(self) -> Mapping[str, Any]:
        """Where the data come from, in JSON values: format, path name, and what writing them back needs."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Episode:
        """Episode `index`. Raises InputError that names the episode where it cannot be read."""
        ...


@runtime_checkable
class NamesFaults(Protocol):
    """A source that knows of episodes that cannot be read when it is opened."""

    def faults(self) -> Mapping[int, str]:
        """Why each of these episodes cannot be read; others may turn out so when they are."""
        ...
