"""Policies for use from Python: loaded by name, called with the observations that environments return."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from jaxtyping import Float

from vla.embodiment import Embodiment
from vla.errors import InputError
from vla.policies.history import FrameHistory, history_of
from vla.policies.load import LEROBOT, REMOTE, SCRIPTED, load_policy, load_realtime
from vla.policies.policy import Policy, takes_fewer_cameras
from vla.types import ActionChunk, Observation, RTCPrefix

ENTRIES = ("images", "state", "instruction")
"""What an observation of an environment must hold; "time" [s] may stand beside them."""


class LoadedPolicy:
    """A policy of one robot. It keeps the past frames that the policy needs: call `reset` when an episode begins."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self._history = FrameHistory.of(policy)

    @property
    def embodiment(self) -> Embodiment:
        """The robot: its cameras, and the components and units of state and action."""
        return self.policy.embodiment

    def reset(self) -> None:
        """Forgets the episode."""
        self.policy.reset()
        self._history.reset()

    def predict(
        self,
        observation: Observation | Mapping[str, Any],
        *,
        prefix: RTCPrefix | Float[np.ndarray, "k a"] | None = None,
    ) -> ActionChunk | None:
        """Predicts the action chunk that starts at an observation.

        Args:
            observation: what `env.reset` and `env.step` return: "images" by camera (h, w, 3) uint8, "state" (s,) in
                the units of `embodiment`, "instruction", and optionally "time" [s].
            prefix: as in `Policy.predict`. An array is the committed actions.

        Returns:
            The chunk, actions (h, a) in the units of `embodiment`; None where the policy has no valid one.

        Raises:
            InputError: an entry of the observation is missing, or a camera of the robot.
        """
        with_history = self._history.with_past_frames(self._observation(observation))
        return self.policy.predict(with_history, prefix=RTCPrefix.of(prefix))

    def _observation(self, observation: Observation | Mapping[str, Any]) -> Observation:
        if isinstance(observation, Observation):
            return observation
        if missing := [name for name in ENTRIES if name not in observation]:
            raise InputError(f"the observation has no {', '.join(missing)}: it needs {', '.join(ENTRIES)}")
        if "time" not in observation and history_of(self.policy):
            raise InputError("this policy uses past frames: add the time [s] to the observation as 'time'")
        images = {camera: np.asarray(image) for camera, image in observation["images"].items()}
        missing = [camera for camera in self.embodiment.cameras if camera not in images]
        if missing and not takes_fewer_cameras(self.policy):
            raise InputError(f"the observation has no image of {', '.join(missing)}, only of {', '.join(images)}")
        state = np.asarray(observation["state"], np.float64)
        return Observation(images, state, str(observation["instruction"]), float(observation.get("time", 0.0)))


def load(name: str, env: gymnasium.Env[Any, Any] | None = None) -> LoadedPolicy:
    """The policy `name` for the robot of `env`; see `vla.load_policy`."""
    if env is not None:
        return LoadedPolicy(load_policy(name)(env))
    if name in SCRIPTED:
        raise InputError(f"the policy {name} acts in one environment: load_policy({name!r}, env)")
    if name.startswith(REMOTE):
        from vla.policies.remote import RemotePolicy

        return LoadedPolicy(RemotePolicy(name))
    if name.startswith(LEROBOT):
        raise InputError("a policy of LeRobot is loaded for an environment: load_policy(name, env)")
    return LoadedPolicy(load_realtime(name))
