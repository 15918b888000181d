"""Base classes of policies that adapt another policy to a robot."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from vla.policies.history import history_of
from vla.policies.policy import BatchPolicy, Policy, guides, takes_prefix
from vla.types import ActionChunk, Observation, RTCPrefix


class WrappedPolicy(ABC):
    """Drives a robot by `policy`, whose states and actions have other components than the robot's."""

    policy: Policy

    @property
    def model(self) -> Any:
        """The policy's model, or None."""
        return getattr(self.policy, "model", None)

    @property
    def takes_prefix(self) -> bool:
        """See `PrefixPolicy`."""
        return takes_prefix(self.policy)

    @property
    def guides(self) -> bool:
        """See `GuidedPolicy`."""
        return guides(self.policy)

    @property
    def history(self) -> tuple[float, ...]:
        """See `HistoryPolicy`."""
        return history_of(self.policy)

    def reset(self) -> None:
        """Resets the policy."""
        self.policy.reset()

    def predict(self, observation: Observation, *, prefix: RTCPrefix | None = None) -> ActionChunk | None:
        """See `Policy.predict`; observation, prefix and chunk are the robot's."""
        converted = None if prefix is None else self._prefix(prefix, observation)
        chunk = self.policy.predict(self._observation(observation), prefix=converted)
        return None if chunk is None else self._chunk(chunk, observation, prefix)

    @abstractmethod
    def _observation(self, observation: Observation) -> Observation:
        """The observation with the state in the policy's components."""

    @abstractmethod
    def _prefix(self, prefix: RTCPrefix, observation: Observation) -> RTCPrefix:
        """The prefix in the policy's components."""

    @abstractmethod
    def _chunk(self, chunk: ActionChunk, observation: Observation, prefix: RTCPrefix | None) -> ActionChunk:
        """The policy's chunk in the robot's components; `observation` and `prefix` are the robot's."""


class BatchWrappedPolicy(WrappedPolicy):
    """`WrappedPolicy` for a policy that predicts batches."""

    def predict_batch(
        self, observations: Sequence[Observation], *, prefix: RTCPrefix | None = None
    ) -> list[ActionChunk | None]:
        """See `BatchPolicy`."""
        assert isinstance(self.policy, BatchPolicy)
        rows = [(one, None if prefix is None else prefix.row(i)) for i, one in enumerate(observations)]
        converted = RTCPrefix.stack([None if row is None else self._prefix(row, one) for one, row in rows])
        chunks = self.policy.predict_batch([self._observation(one) for one in observations], prefix=converted)
        return [None if chunk is None else self._chunk(chunk, *row) for chunk, row in zip(chunks, rows, strict=True)]
