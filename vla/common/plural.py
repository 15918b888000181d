"""Counts with singular and plural nouns."""

from __future__ import annotations


def counted(count: int, noun: str) -> str:
    """A count with a noun, "1 episode" or "3 episodes"; `noun` is singular and has a plural in s."""
    return f"{count} {noun}{'' if count == 1 else 's'}"
