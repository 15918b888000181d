"""States and actions of the episodes that a policy is trained on, without their images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int

from vla.embodiment import Embodiment
from vla.models.action_targets import ActionTargets
from vla.models.robot_spec import RobotSpec

Numbers = tuple[Float[np.ndarray, "_n a"], Float[np.ndarray, "_n s"]]
"""Actions and states of an episode."""
Episodes = Int[np.ndarray, "_e"]
"""Indices of episodes."""


class EpisodeNumbers(ABC):
    """States and actions of episodes, from which a robot's specification is computed."""

    @property
    @abstractmethod
    def embodiment(self) -> Embodiment: ...

    @abstractmethod
    def numbers(self, episodes: Episodes | None = None) -> Iterator[Numbers]:
        """Actions and states of these episodes; None: of those for training.

        Raises:
            InputError: a component is not finite.
        """

    @property
    def things(self) -> int:
        """The number of tracked objects, whose image points each camera has."""
        return 0

    def thumbnails(self) -> dict[str, str]:
        """The first image of one episode from each camera (`StartRegion.images`); empty if none is decoded."""
        return {}

    def states(self) -> Iterator[Float[np.ndarray, "_n s"]]:
        """The states of each episode."""
        yield from (state for _, state in self.numbers())

    def first_states(self) -> Iterator[Float[np.ndarray, "s"]]:
        """The state in which each episode begins."""
        yield from (state[0] for state in self.states())

    def targets(self, targets: ActionTargets, horizon: int) -> Iterator[Float[np.ndarray, "_n w"]]:
        """The prediction targets of all action chunks of each episode, before normalisation."""
        for actions, state in self.numbers():
            indices = np.arange(len(actions))[:, None] + np.arange(horizon)
            valid = indices < len(actions)
            yield targets.encode(actions[np.minimum(indices, len(actions) - 1)], state)[valid]

    def chunks(self, robot: RobotSpec, episodes: Episodes | None = None) -> Iterator[Float[np.ndarray, "_b _h _a"]]:
        """The normalised action chunks that start at each step of each episode; the last action is repeated."""
        for actions, state in self.numbers(episodes):
            indices = np.minimum(np.arange(len(actions))[:, None] + np.arange(robot.horizon), len(actions) - 1)
            yield robot.action.normalize(robot.targets.encode(actions[indices], state))
