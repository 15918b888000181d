"""Open-loop replay of the recorded actions of an episode, to measure the loss of an action representation."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np

from vla.datasets.episodes import EpisodeStore
from vla.errors import InputError
from vla.types import ActionChunk, Observation, RTCPrefix


class ReplayPolicy:
    """Replays the episode in `store` that was recorded with the current seed of `env`, in chunks of `horizon` actions.

    After its end, the last recorded action is repeated.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], store: EpisodeStore, horizon: int = 8) -> None:
        self.embodiment = store.embodiment
        self._env, self._store, self._horizon = env.unwrapped, store, horizon
        self._episodes = {int(record.info["seed"]): record for record in store.records if "seed" in record.info}

    def reset(self) -> None:
        """Selects the episode. Raises InputError if the store has none with the seed."""
        seed = self._env.np_random_seed
        if seed not in self._episodes:
            raise InputError(f"{self._store.path} holds no episode of the seed {seed}")
        self._actions = np.asarray(self._store.action[self._episodes[seed].frames], np.float64)

    def predict(self, observation: Observation, *, prefix: RTCPrefix | None = None) -> ActionChunk:
        """See `Policy.predict`; a prefix replaces the recorded actions."""
        step = round(observation.time * self.embodiment.control_hz)
        rows = np.minimum(step + np.arange(self._horizon), len(self._actions) - 1)
        actions = self._actions[rows].copy()
        if prefix is not None:
            actions[: len(prefix.committed)] = prefix.committed[: len(actions)]
        return ActionChunk(actions, observation.time, 1 / self.embodiment.control_hz)
