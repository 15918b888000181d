"""Selection of a store's episodes by index ranges and by conditions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from vla.datasets.episode_index import EpisodeRecord
from vla.errors import InputError

UNKNOWN = "unknown"
MAX_LISTED = 5
"""Maximum number of episode indices in a message."""
FEW = 20
"""Default number of episodes to show: a viewer holds them all in memory."""


def episodes_of(text: str, count: int, option: str = "episodes") -> list[int]:
    """The indices that `text` names in a store of `count` episodes, in ascending order without duplicates.

    "3,7,9:12" names single episodes and half-open ranges. The start or the end of a range may be omitted.

    Raises:
        InputError: the text cannot be parsed, or it names an episode that does not exist.
    """
    indices: set[int] = set()
    for item in text.split(","):
        first, colon, end = (piece.strip() for piece in item.partition(":"))
        if not all(piece.isdecimal() or (colon and not piece) for piece in (first, end if colon else first)):
            raise InputError(f"{option}={text}: cannot read {item!r}; write 3,7,9:12 (12 is left out)")
        start = int(first or 0)
        stop = int(end or count) if colon else start + 1
        if start >= stop or stop > count:
            raise InputError(f"{option}={text}: {item!r} is not among the {count} episodes 0:{count}")
        indices.update(range(start, stop))
    return sorted(indices)


def matching(
    records: Sequence[EpisodeRecord],
    *,
    episodes: str | None = None,
    success: bool | str | None = None,
    instruction: str | None = None,
    min_steps: int | None = None,
    max_steps: int | None = None,
) -> list[int]:
    """The indices of the episodes that meet all conditions; None imposes no condition.

    Args:
        records: the records of the store.
        episodes: index ranges, as in `episodes_of`.
        success: true, false or "unknown".
        instruction: a pattern for the full instruction of the episode or of one of its sub-tasks. * matches any text,
            ? one character; case is ignored.
        min_steps: the minimum number of steps.
        max_steps: the maximum number of steps.

    Raises:
        InputError: no episode matches.
    """
    label = success_of(success)
    candidates = range(len(records)) if episodes is None else episodes_of(episodes, len(records))

    def has(record: EpisodeRecord, pattern: str) -> bool:
        texts = (record.instruction, *(span.instruction for span in record.spans))
        return any(fnmatchcase(text.casefold(), pattern.casefold()) for text in texts)

    def fits(record: EpisodeRecord) -> bool:
        return (
            (success is None or record.success is label)
            and (instruction is None or has(record, instruction))
            and (min_steps is None or record.length >= min_steps)
            and (max_steps is None or record.length <= max_steps)
        )

    matches = [index for index in candidates if fits(records[index])]
    if not matches:
        hint = (
            "" if success in (None, UNKNOWN) or not unknown_of(records, candidates) else "; success=unknown fits some"
        )
        raise InputError(
            f"none of {len(candidates)} episodes fits: `vla data info` shows instructions and lengths{hint}"
        )
    return matches


def named(episodes: Iterable[int]) -> str:
    """The first `MAX_LISTED` of the episodes as a text such as "episodes 3, 7 and 2 more"."""
    numbers = list(episodes)
    text = ", ".join(map(str, numbers[:MAX_LISTED])) + (
        f" and {len(numbers) - MAX_LISTED} more" * (len(numbers) > MAX_LISTED)
    )
    return f"episode{'s' * (len(numbers) > 1)} {text}"


def unknown_of(records: Sequence[EpisodeRecord], candidates: Iterable[int]) -> list[int]:
    """The candidates without a success label."""
    return [index for index in candidates if records[index].success is None]


def success_of(value: bool | str | None) -> bool | None:
    """The success label of an option success=true|false|unknown. Raises InputError for another text."""
    if isinstance(value, str) and value != UNKNOWN:
        raise InputError(f"success={value}: success takes true, false or {UNKNOWN}")
    return None if isinstance(value, str) else value


def check_range(episodes: str) -> slice:
    """The range FIRST:END. Raises InputError if the text is not such a range."""
    match = re.fullmatch(r"(\d*):(\d*)", episodes)
    if match is None:
        raise InputError(f"episodes must be FIRST:END, such as 0:10, not {episodes!r}")
    return slice(int(match[1] or 0), int(match[2]) if match[2] else None)


def choose(episodes: str | None, count: int) -> range:
    """The episodes FIRST:END of a store of `count`. None selects the first `FEW`.

    Raises InputError if the text is not such a range, or the range has no episodes.
    """
    candidates = range(min(count, FEW)) if episodes is None else range(count)[check_range(episodes)]
    if not candidates:
        raise InputError(f"there is no episode to show: the store has {count}, requested were {episodes or 'all'}")
    return candidates
