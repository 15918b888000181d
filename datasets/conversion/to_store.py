"""Conversion of a source's episodes into a store. Each is read back; an unfinished conversion is resumed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from vla.common.plural import counted
from vla.datasets.conversion.selection import Selection
from vla.errors import InputError

if TYPE_CHECKING:
    from vla.datasets.episodes import EpisodeStore
    from vla.types import Episode


class Written:
    """The result of a conversion: episodes, steps, the mean pixel error of each episode, and skipped episodes."""

    def __init__(self) -> None:
        self.episodes = 0
        self.steps = 0
        self.errors: list[float] = []
        self.without_instruction = 0
        """Episodes without an instruction."""
        self.skipped: list[dict[str, Any]] = []
        self.started = time.monotonic()

    def skip(self, episode: int, reason: str) -> None:
        """Records that an episode of the source is skipped."""
        self.skipped.append({"episode": episode, "reason": reason})

    def count(self, episode: Episode) -> None:
        """Counts an episode that was written."""
        self.episodes += 1
        self.steps += len(episode)
        self.without_instruction += not episode.instruction


class StoreTarget:
    """The store at `dst`: created with the first episode, or opened if the same conversion began it.

    The episodes of the selection are appended or skipped in order, and skipped ones are recorded in the store's
    provenance. The sum of the two counts is therefore the position at which to resume.
    """

    def __init__(self, selection: Selection, dst: str, codec: str, quiet: bool = False) -> None:
        """Raises InputError if `dst` is something else, or an unfinished conversion of other episodes."""
        from vla.datasets.open_folder import open_folder

        self.selection, self.dst, self.codec = selection, dst, codec
        self.skipped: list[dict[str, Any]] = []
        self.store: EpisodeStore | None = None
        if open_folder(dst).exists("zarr.json"):
            self.store = _reopened(selection, dst, codec)
            self.skipped = [dict(entry) for entry in self.store.provenance.get("skipped", ())]
            if not quiet:
                print(f"{dst}: resuming after {counted(self.done, 'episode')}")
            self._check_begun(self.store)

    @property
    def done(self) -> int:
        """The number of episodes that were appended or skipped."""
        return len(self.skipped) + (0 if self.store is None else len(self.store))

    def check(self, episode: Episode) -> None:
        """Raises InputError if the episode cannot be stored."""
        from vla.datasets.episode_checks import check_episode

        if self.store is None:
            check_episode(episode, self.selection.embodiment, {})
        else:
            self.store.check(episode)

    def append(self, episode: Episode) -> float:
        """Stores the episode and reads it back. Returns the mean pixel error, of 255."""
        from vla.datasets.formats.compare import check_equal

        store = self._opened()
        store.append(episode)
        return check_equal(episode, store[len(store) - 1])

    def copy(self, part: EpisodeStore, index: int) -> None:
        """Stores episode `index` of another store without decoding its images."""
        self._opened().append_from(part, index)

    def skip(self, episode: int, reason: str) -> None:
        """Records that an episode of the source is skipped."""
        self.skipped.append({"episode": episode, "reason": reason})
        if self.store is not None:
            self.store.set_provenance(self._provenance(self.store.provenance))

    def _opened(self) -> EpisodeStore:
        from vla.datasets.episodes import EpisodeStore

        if self.store is None:
            provenance = self._provenance(self.selection.provenance)
            self.store = EpisodeStore.create(self.dst, self.selection.embodiment, self.codec, provenance)
        return self.store

    def close(self) -> None:
        """Closes the store."""
        if self.store is not None:
            self.store.close()

    def _provenance(self, provenance: Mapping[str, Any]) -> dict[str, Any]:
        return {**provenance, "skipped": self.skipped} if self.skipped else dict(provenance)

    def _check_begun(self, store: EpisodeStore) -> None:
        from vla.datasets.formats.compare import check_equal

        skipped = {entry["episode"] for entry in self.skipped}
        stored = [position for position in range(self.done) if self.selection.indices[position] not in skipped]
        if not stored:
            return
        try:
            check_equal(self.selection[stored[-1]], store[len(store) - 1])
        except InputError as error:
            store.close()
            raise InputError(f"{self.dst} was not begun from {self.selection.name(stored[-1])}: {error}") from error


def to_store(selection: Selection, dst: str, codec: str, quiet: bool = False) -> Written:
    """Appends the episodes that the store at `dst` does not have yet, with a progress bar unless `quiet`.

    If every episode is skipped, no store is created. Raises InputError that names an episode that cannot be read or
    stored.
    """
    from tqdm import tqdm

    written = Written()
    target = StoreTarget(selection, dst, codec, quiet)
    try:
        bar = {"desc": "convert", "unit": "episode", "initial": target.done, "total": len(selection)}
        positions = tqdm(range(target.done, len(selection)), disable=quiet, **bar)
        for position, episode in readable(selection, positions, target.check, target.skip):
            with naming(selection.name(position)):
                written.errors.append(target.append(episode))
            written.count(episode)
    finally:
        target.close()
    written.skipped = target.skipped
    return written


def readable(
    selection: Selection,
    positions: Iterable[int],
    check: Callable[[Episode], None],
    skip: Callable[[int, str], None],
) -> Iterator[tuple[int, Episode]]:
    """The episodes at the positions that can be read and stored.

    Args:
        selection: The selected episodes.
        positions: Their positions.
        check: Raises InputError for an episode that cannot be stored.
        skip: Called with the index in the source of an episode to skip, and the reason.

    Raises:
        InputError: An episode cannot be read or stored, and is not to be skipped.
    """
    for position in positions:
        try:
            episode = selection[position]
            with naming(selection.name(position)):
                check(episode)
        except InputError as error:
            if not selection.request.skip:
                raise InputError(f"{error}; {selection.advice}") from error
            skip(selection.indices[position], selection.reason(position, error))
            continue
        yield position, episode


@contextmanager
def naming(what: str) -> Iterator[None]:
    """Prefixes InputErrors with the name of what they concern."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{what}: {error}") from error


def _reopened(selection: Selection, dst: str, codec: str) -> EpisodeStore:
    """The unfinished store of the same conversion. Raises InputError if it is of another conversion."""
    from vla.datasets.episodes import EpisodeStore

    store = EpisodeStore.open(dst, "a")
    begun = {"codec": store.codec, **store.provenance.get("conversion", {})}
    expected = {"codec": codec, **selection.provenance["conversion"]}
    for key, value in expected.items():
        if begun.get(key) != value:
            store.close()
            raise InputError(
                f"{dst} exists already and is not of this conversion (its {key} is {begun.get(key)}, not {value}): "
                "choose another DST, or remove it"
            )
    return store
