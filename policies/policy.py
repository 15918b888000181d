"""The policy interface: an observation in, an action chunk out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from vla.embodiment import Embodiment
from vla.types import ActionChunk, Observation, RTCPrefix


@runtime_checkable
class Policy(Protocol):
    """A policy for one embodiment."""

    @property
    def embodiment(self) -> Embodiment:
        """The robot that the policy drives."""
        ...

    def reset(self) -> None:
        """Starts a new episode."""
        ...

    def predict(self, observation: Observation, *, prefix: RTCPrefix | None = None) -> ActionChunk | None:
        """Predicts an action chunk.

        Args:
            observation: The observation.
            prefix: The committed actions, with which the chunk begins (real-time chunking), and for a policy that
                `guides` the leftover of the previous chunk.

        Returns:
            The chunk that starts at `observation.time`. None if no valid chunk was produced: the caller then holds the
            robot still.
        """
        ...


@runtime_checkable
class BatchPolicy(Protocol):
    """A policy without memory between chunks, which can serve many robots of its embodiment."""

    def predict_batch(
        self, observations: Sequence[Observation], *, prefix: RTCPrefix | None = None
    ) -> list[ActionChunk | None]:
        """`predict` for a batch of observations, with the prefix of the batch (`RTCPrefix.stack`)."""
        ...


@runtime_checkable
class FewerCamerasPolicy(Protocol):
    """A policy that may have been trained for observations without some of its embodiment's cameras."""

    @property
    def fewer_cameras(self) -> bool:
        """Whether it accepts such observations."""
        ...


def takes_fewer_cameras(policy: Policy) -> bool:
    """Whether the policy accepts observations without some of its cameras."""
    return isinstance(policy, FewerCamerasPolicy) and policy.fewer_cameras


@runtime_checkable
class PrefixPolicy(Protocol):
    """A policy that may not support an action prefix; other policies do."""

    @property
    def takes_prefix(self) -> bool:
        """Whether it supports an action prefix."""
        ...


def takes_prefix(policy: Policy) -> bool:
    """Whether the policy supports an action prefix."""
    return not isinstance(policy, PrefixPolicy) or policy.takes_prefix


@runtime_checkable
class GuidedPolicy(Protocol):
    """A policy that may support guidance towards the previous chunk after the prefix (soft mask of RTC)."""

    @property
    def guides(self) -> bool:
        """Whether it supports guidance."""
        ...


def guides(policy: Policy) -> bool:
    """Whether the policy supports guidance, which needs a flow head."""
    return isinstance(policy, GuidedPolicy) and policy.guides
