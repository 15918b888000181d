"""The policy interface: an observation in, an action chunk out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from vla.embodiment import Embodiment
from vla.types import ActionChunk, Observation


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

    def predict(
        self, observation: Observation, *, prefix: Float[np.ndarray, "k a"] | None = None
    ) -> ActionChunk | None:
        """Predicts an action chunk.

        Args:
            observation: The observation.
            prefix: The action prefix: the first k actions of the chunk, which are committed already.

        Returns:
            The chunk that starts at `observation.time`. None if no valid chunk was produced: the caller then holds the
            robot still.
        """
        ...


@runtime_checkable
class BatchPolicy(Protocol):
    """A policy without memory between chunks, which can serve many robots of its embodiment."""

    def predict_batch(
        self, observations: Sequence[Observation], *, prefix: Float[np.ndarray, "b k a"] | None = None
    ) -> list[ActionChunk | None]:
        """`predict` for a batch of observations; all action prefixes have the same length k."""
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
class GuidedPolicy(BatchPolicy, Protocol):
    """A policy that may support guidance towards the previous chunk after the prefix (soft mask of RTC)."""

    @property
    def guides(self) -> bool:
        """Whether it supports guidance."""
        ...

    def predict_batch(
        self,
        observations: Sequence[Observation],
        *,
        prefix: Float[np.ndarray, "b k a"] | None = None,
        previous_chunk_leftover: Float[np.ndarray, "b m a"] | None = None,
        vjp: bool = False,
    ) -> list[ActionChunk | None]:
        """Predicts guided chunks.

        Args:
            observations: As in `BatchPolicy`.
            prefix: As in `BatchPolicy`.
            previous_chunk_leftover: The previous chunk's m actions after the prefix.
            vjp: As in `vla.models.action_heads.rtc_guidance.RTCGuidance`.
        """
        ...


def guides(policy: Policy | BatchPolicy) -> bool:
    """Whether the policy supports guidance, which needs a flow head."""
    return isinstance(policy, GuidedPolicy) and policy.guides
