"""Language instructions: several phrasings for each task, some held out from training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from vla.errors import InputError, unknown

PHRASING_SETS = ("train", "heldout")
MAX_LENGTH = 96
CHARACTERS = "abcdefghijklmnopqrstuvwxyz ,"


def instruction(templates: Sequence[str], words: Mapping[str, tuple[str, ...]], rng: np.random.Generator) -> str:
    """Samples a template and a variant for each of its fields.

    Raises:
        InputError: a field has no variants, or a single text instead of a tuple of texts.
    """
    template = str(rng.choice(templates))
    for field, variants in words.items():
        if isinstance(variants, str) or not variants:
            raise InputError(f"words() has {field}={variants!r}: give a tuple of texts, such as ('red cube',)")
    chosen = {field: variants[int(rng.integers(len(variants)))] for field, variants in words.items()}
    try:
        return template.format(**chosen)
    except KeyError as error:
        raise InputError(f"words() has no {error}, which {template!r} needs") from error


def check_phrasing(phrasing: str) -> None:
    """Raises InputError for an unknown set of phrasings."""
    if phrasing not in PHRASING_SETS:
        raise unknown("phrasing set", phrasing, PHRASING_SETS)
