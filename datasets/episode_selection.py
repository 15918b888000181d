"""Which episodes of a store a user means."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from vla.datasets.episode_index import EpisodeRecord
from vla.errors import InputError

UNKNOWN = "unknown"
NAMED = 5
"""Episodes that a remark names."""
FEW = 20
"""How many episodes are shown unless others are asked for: a viewer holds them all in memory."""


def episodes_of(text: str, count: int, option: str = "episodes") -> list[int]:
    """The indices that `text` names in a store of `count` episodes, in rising order, each once.

    "3,7,9:12" names single episodes and ranges without their end; either end of a range may be left out. Raises
    InputError for what cannot be read and for an episode that is not there.
    """
    found: set[int] = set()
    for part in text.split(","):
        first, colon, end = (piece.strip() for piece in part.partition(":"))
        if not all(piece.isdecimal() or (colon and not piece) for piece in (first, end if colon else first)):
            raise InputError(f"{option}={text}: cannot read {part!r}; write 3,7,9:12 (12 is left out)")
        start = int(first or 0)
        stop = int(end or count) if colon else start + 1
        if start >= stop or stop > count:
            raise InputError(f"{option}={text}: {part!r} is not among the {count} episodes 0:{count}")
        found.update(range(start, stop))
    return sorted(found)


def matching(
    records: Sequence[EpisodeRecord],
    *,
    episodes: str | None = None,
    success: bool | str | None = None,
    instruction: str | None = None,
    min_steps: int | None = None,
    max_steps: int | None = None,
) -> list[int]:
    """The indices of the episodes that fit every condition given.

    `success` is true, false or "unknown". `instruction` is a pattern of the whole text of the episode's instruction or
    of a sub-task's: * stands for anything, ? for one character, capitals do not matter. Raises InputError when none
    fits.
    """
    wanted = success_of(success)
    chosen = range(len(records)) if episodes is None else episodes_of(episodes, len(records))

    def has(record: EpisodeRecord, pattern: str) -> bool:
        texts = (record.instruction, *(span.instruction for span in record.spans))
        return any(fnmatchcase(text.casefold(), pattern.casefold()) for text in texts)

    def fits(record: EpisodeRecord) -> bool:
        return (
            (success is None or record.success is wanted)
            and (instruction is None or has(record, instruction))
            and (min_steps is None or record.length >= min_steps)
            and (max_steps is None or record.length <= max_steps)
        )

    found = [index for index in chosen if fits(records[index])]
    if not found:
        hint = "" if success in (None, UNKNOWN) or not unknown_of(records, chosen) else "; success=unknown fits some"
        raise InputError(f"none of {len(chosen)} episodes fits: `vla data info` shows instructions and lengths{hint}")
    return found


def named(episodes: Iterable[int]) -> str:
    """ "episodes 3, 7": the first of them."""
    numbers = list(episodes)
    text = ", ".join(map(str, numbers[:NAMED])) + (f" and {len(numbers) - NAMED} more" * (len(numbers) > NAMED))
    return f"episode{'s' * (len(numbers) > 1)} {text}"


def unknown_of(records: Sequence[EpisodeRecord], chosen: Iterable[int]) -> list[int]:
    """Those of the chosen episodes of which nobody has said whether they succeeded."""
    return [index for index in chosen if records[index].success is None]


def success_of(value: bool | str | None) -> bool | None:
    """What an option success=true|false|unknown means. Raises InputError for another text."""
    if isinstance(value, str) and value != UNKNOWN:
        raise InputError(f"success={value}: success takes true, false or {UNKNOWN}")
    return None if isinstance(value, str) else value


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
