"""The interface of every episode format: a sequence of episodes of one embodiment.

Each format is a module of `vla.datasets.formats` with `detect(path) -> bool`, which is cheap, and
`open_source(path, **options) -> EpisodeSource`, which raises InputError if the data cannot be read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from vla.embodiment import Embodiment
from vla.types import Episode


@runtime_checkable
class EpisodeSource(Protocol):
    """Episodes in a foreign format, decoded on access."""

    @property
    def embodiment(self) -> Embodiment:
        """The embodiment that all episodes share."""
        ...

    @property
    def provenance(self) -> Mapping[str, Any]:
        """The origin of the data in JSON values: format, path name, and what is needed to write them back."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Episode:
        """Episode `index`. Raises InputError that names the episode if it cannot be read."""
        ...


@runtime_checkable
class ChecksFiles(Protocol):
    """A source that checks its files when it is opened; its `open_source` takes the result as `unreadable`."""

    @property
    def unreadable(self) -> Mapping[str, str]:
        """The unreadable files, with the reason."""
        ...


@runtime_checkable
class NamesFaults(Protocol):
    """A source that can list unreadable episodes before they are decoded."""

    def faults(self) -> Mapping[int, str]:
        """The reason for each unreadable episode found so far. More may be found on reading."""
        ...
