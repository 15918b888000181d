"""`vla data migrate`: adds action modes to stores of older versions, inferred from the data or set by the user."""

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
    """Declares the action modes of a store and prints the evidence; replaces one file atomically.

    A store that already declares them is unchanged if no option is set.

    Args:
        path: The store.
        actions: Action modes, as in `infer_actions`.
        grippers: Gripper components, as in `infer_actions`.
        rotations: Rotations, as in `infer_actions`.

    Raises:
        InputError: The action modes cannot be inferred from the data and are not set. Nothing is written.
    """
    options: dict[str, Any] = {"actions": actions, "grippers": grippers, "rotations": rotations}
    choices = {name: value for name, value in options.items() if value is not None}
    with EpisodeStore.open(path, "a") as store:
        if store.declares_actions and not choices:
            print(f"{path}: already declares its action modes; actions=… replaces them")
            return
        episodes = ((store.state[record.frames], store.action[record.frames]) for record in store.records)
        embodiment, evidence = infer_actions(store.embodiment, episodes, **choices)
        store.set_embodiment(embodiment)
    print(f"{path}:", *evidence, sep="\n  ")
