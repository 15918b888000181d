"""The scripted expert of a simulated task as a policy: the upper baseline of an evaluation."""

from __future__ import annotations

from typing import Any

import gymnasium

from vla.embodiment import Embodiment
from vla.envs.scripted_expert import expert_of
from vla.types import ActionChunk, Observation, RTCPrefix


class ScriptedExpertPolicy:
    """Chunks of one action, computed from the environment's privileged state; the observation is not used."""

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        self._expert = expert_of(env)
        self.embodiment: Embodiment = env.unwrapped.embodiment  # type: ignore[attr-defined]

    def reset(self) -> None:
        """Resets the expert."""
        self._expert.reset()

    def predict(self, observation: Observation, *, prefix: RTCPrefix | None = None) -> ActionChunk:
        """See `Policy.predict`; a prefix is ignored."""
        return ActionChunk(self._expert.act()[None], observation.time, 1 / self.embodiment.control_hz)
