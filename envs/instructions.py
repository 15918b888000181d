"""Language instructions: several phrasings for each task, some held out from training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from vla.errors import unknown

PHRASING_SETS = ("train", "heldout")
MAX_LENGTH = 96
CHARACTERS = "abcdefghijklmnopqrstuvwxyz ,"


def instruction(templates: Sequence[str], words: Mapping[str, tuple[str, ...]], rng: np.random.Generator) -> str:
    """Samples a template and a variant for each of its fields."""
    template = str(rng.choice(templates))
    return template.format(**{field: variants[int(rng.integers(len(variants)))] for field, variants in words.items()})


def every_instruction() -> Iterator[str]:
    """All phrasings of all tasks with all words, not in all combinations; training text for a tokenizer."""
    from vla.envs.tasks import TASKS  # imports MuJoCo, which `check_phrasing` does not need

    for task in TASKS.values():
        for template in (t for templates in task.templates.values() for t in templates):
            for i in range(max(len(variants) for variants in task.vocabulary.values())):
                yield template.format(
                    **{field: variants[i % len(variants)] for field, variants in task.vocabulary.items()}
                )


def check_phrasing(phrasing: str) -> None:
    """Raises InputError for an unknown set of phrasings."""
    if phrasing not in PHRASING_SETS:
        raise unknown("phrasing set", phrasing, PHRASING_SETS)
