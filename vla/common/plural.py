"""Counts with singular and plural nouns."""

from __future__ import annotations


def counted(count: int, thing: str) -> str:
    """ "1 episode", "3 episodes"; `thing` is the singular of a noun whose plural ends in s."""
    return f"{count} {thing}{'' if count == 1 else 's'}"
