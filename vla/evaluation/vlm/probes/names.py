"""The names of the probes, in the order of `vla.evaluation.vlm.probes.registry`, which takes a second to import."""

from __future__ import annotations

from collections.abc import Collection

from vla.errors import InputError, suggestion

GAP = "modality-gap"
NAMES = ("pope-sim", "chair-sim", "counting", "spatial", "detail", GAP)


def check_names(names: Collection[str] | None) -> None:
    """Raises InputError for an unknown probe."""
    for name in names or ():
        if name not in NAMES:
            raise InputError(f"unknown probe {name!r}: choose from {', '.join(NAMES)}{suggestion(name, NAMES)}")
