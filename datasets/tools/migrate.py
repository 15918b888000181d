"""Stores of before actions said what they are: what the numbers show, or the user says, is written into them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vla.datasets.action_inference import infer_actions
from vla.datasets.episodes import EpisodeStore


def migrate(
    path: str,
    *,
    actions: str | Mapping[str, str] | None = None,
    grippers: Sequence[str] | None = None,
    rotations: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Writes into the store what its actions are, and prints the evidence; a store that says it stays as it is.

    The options are those of `infer_actions`; with any of them what the store says is replaced. The change is one file
    that is replaced. Raises InputError, before anything is written, where the numbers do not tell and nothing is said.
    """
    given: dict[str, Any] = {"actions": actions, "grippers": grippers, "rotations": rotations}
    choices = {name: value for name, value in given.items() if value is not None}
    with EpisodeStore.open(path, "a") as store:
        if store.declares_actions and not choices:
            print(f"{path}: says already what its actions are; actions=… replaces it")
            return
        episodes = ((store.state[record.frames], store.action[record.frames]) for record in store.records)
        embodiment, evidence = infer_actions(store.embodiment, episodes, **choices)
        store.set_embodiment(embodiment)
    print(f"{path}:", *evidence, sep="\n  ")
