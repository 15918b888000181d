"""A range of a source's episodes, as an option names it."""

from __future__ import annotations

import re

from vla.errors import InputError

FEW = 20
"""How many episodes are shown unless others are asked for: a viewer holds them all in memory."""


def choose(episodes: str | None, count: int) -> range:
    """The episodes of a store of `count` that FIRST:END names; None: the first few.

    Raises InputError for what is no such range, and where it holds no episode.
    """
    if episodes is None:
        chosen = range(min(count, FEW))
    else:
        match = re.fullmatch(r"(\d*):(\d*)", episodes)
        if match is None:
            raise InputError(f"episodes must be FIRST:END, such as 0:10, not {episodes!r}")
        chosen = range(count)[int(match[1] or 0) : int(match[2] or count)]
    if not chosen:
        raise InputError(f"there is no episode to show: the store has {count}, asked for were {episodes or 'all'}")
    return chosen
