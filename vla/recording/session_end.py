"""The end of an episode, and of a session, in which an operator, or a script in the place of one, moved an arm."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from jaxtyping import Float

from vla.datasets.episodes import EpisodeStore
from vla.datasets.open_folder import open_folder
from vla.errors import InputError

MOVED = 0.01
"""[rad] by which a joint changes that moves: above the noise of encoders and the arm's own settling."""
UNMOVED = "not saved: the arm has not moved in this episode"


class Motion:
    """Whether an arm moved, and was commanded to, in what it is shown: its measured joints and its targets [rad]."""

    def __init__(self) -> None:
        self._low, self._high = np.full((2, 1), np.inf), np.full((2, 1), -np.inf)

    def add(self, state: Float[np.ndarray, "s"], target: Float[np.ndarray, "a"] | None) -> None:
        """`target` is None where nothing was commanded."""
        nothing = np.full(len(state), np.nan)
        both = np.stack([state, nothing if target is None else target])
        self._low, self._high = np.fmin(self._low, both), np.fmax(self._high, both)

    @property
    def seen(self) -> bool:
        return bool((self._high - self._low > MOVED).any(axis=1).all())


def tell_kept(out: str, store: EpisodeStore, before: int) -> None:
    """Prints how many episodes are new and in all, and how to look at them."""
    look = f"; vla data info {shlex.quote(out)}" if len(store) else ""
    print(f"{out}: {len(store) - before} new episodes, {len(store)} in all{look}", flush=True)


def check_script_kept(out: str, store: EpisodeStore, before: int) -> None:
    """Raises InputError, which says how a script keeps an episode, where it kept none; a store that was made for it is
    removed."""
    if len(store) > before:
        return
    remove_empty(out, store)
    how = "save keeps what was done since the episode's first movement, and a task that is met keeps itself"
    raise InputError(f"the script kept no episode: {how}")


def remove_empty(out: str, store: EpisodeStore) -> None:
    """Closes the store, and removes it where it holds no episode."""
    store.close()
    if not len(store):
        open_folder(out).remove("")


@contextmanager
def nothing_left_behind(out: str, store: EpisodeStore) -> Iterator[None]:
    """A store in which nothing came to lie before an error goes again."""
    try:
        yield
    except BaseException:
        remove_empty(out, store)
        raise
