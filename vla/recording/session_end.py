"""The end of an episode and of a session of teleoperation by an operator or a script."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from jaxtyping import Float

from vla.common.plural import counted
from vla.datasets.episodes import EpisodeStore
from vla.datasets.open_folder import open_folder
from vla.errors import InputError

MOVED = 0.01
"""Change of a joint that counts as motion [rad]: above encoder noise and settling of the arm."""
UNMOVED = "not saved: the arm has not moved in this episode"


class Motion:
    """Detects whether an arm moved on command, from its measured joints and its targets [rad]."""

    def __init__(self) -> None:
        self._low, self._high = np.full((2, 1), np.inf), np.full((2, 1), -np.inf)

    def add(self, state: Float[np.ndarray, "s"], target: Float[np.ndarray, "a"] | None) -> None:
        """Adds a step; `target` is None if nothing was commanded."""
        values = np.stack([state, np.full(len(state), np.nan) if target is None else target])
        self._low, self._high = np.fmin(self._low, values), np.fmax(self._high, values)

    @property
    def moved(self) -> bool:
        """Whether both the joints and the targets changed."""
        return bool((self._high - self._low > MOVED).any(axis=1).all())


def print_episode_count(out: str, store: EpisodeStore, before: int, *, finished: bool = False) -> None:
    """Prints the number of new episodes and of all episodes, and the command to inspect them.

    `finished`: whether the store had the requested number of episodes before.
    """
    hint = f"; vla data info {shlex.quote(out)}" if len(store) else ""
    if finished:
        print(f"{out}: {counted(before, 'episode')} {are_requested(before)}{hint}", flush=True)
    else:
        print(f"{out}: {len(store) - before} new episodes, {len(store)} in all{hint}", flush=True)


def are_requested(count: int) -> str:
    """The end of the line for a recording that was finished before: nothing is missing of its `count` episodes."""
    return f"{'is' if count == 1 else 'are'} there already: set more episodes= to continue"


def check_script_saved(out: str, store: EpisodeStore, before: int) -> None:
    """Checks that a script saved an episode. Else an empty store is removed.

    Raises:
        InputError: if it saved none; the message explains how a script saves an episode.
    """
    if len(store) > before:
        return
    remove_empty(out, store)
    hint = "save stores the episode from its first movement on, and an episode whose task succeeds is stored by itself"
    raise InputError(f"the script saved no episode: {hint}")


def remove_empty(out: str, store: EpisodeStore) -> None:
    """Closes the store, and removes it if it is empty."""
    store.close()
    if not len(store):
        open_folder(out).remove("")


@contextmanager
def remove_empty_on_error(out: str, store: EpisodeStore) -> Iterator[None]:
    """Removes an empty store if the block raises."""
    try:
        yield
    except BaseException:
        remove_empty(out, store)
        raise
