"""What a policy is: an observation in, a chunk of actions out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from vla.embodiment import Embodiment
from vla.types import ActionChunk, Observation


@runtime_checkable
class Policy(Protocol):
    """A policy for one embodiment. `reset` forgets the episode; `predict` is called once a chunk."""

    @property
    def embodiment(self) -> Embodiment: ...

    def reset(self) -> None: ...

    def predict(
        self, observation: Observation, *, prefix: Float[np.ndarray, "k a"] | None = None
    ) -> ActionChunk | None:
        """The chunk that starts at `observation.time`; its first k actions are `prefix` where one is given.

        None means that no valid chunk could be produced: the caller holds the robot still.
        """
        ...


@runtime_checkable
class BatchPolicy(Protocol):
    """A policy without memory between chunks, which can serve many robots of its embodiment at once."""

    def predict_batch(
        self, observations: Sequence[Observation], *, prefix: Float[np.ndarray, "b k a"] | None = None
    ) -> list[ActionChunk | None]:
        """`predict` for each observation; `prefix` as there, of one length k for all."""
        ...


@runtime_checkable
class FewerCamerasPolicy(Protocol):
    """One that says whether it acts on observations that lack some of its embodiment's cameras."""

    @property
    def fewer_cameras(self) -> bool: ...


def takes_fewer_cameras(policy: Policy) -> bool:
    """Whether it acts without some of its cameras: so it was trained."""
    return isinstance(policy, FewerCamerasPolicy) and policy.fewer_cameras


@runtime_checkable
class PrefixPolicy(Protocol):
    """One that says whether its chunks can begin with given actions; any other can."""

    @property
    def takes_prefix(self) -> bool: ...


def takes_prefix(policy: Policy) -> bool:
    """Whether its chunks can begin with given actions."""
    return not isinstance(policy, PrefixPolicy) or policy.takes_prefix


@runtime_checkable
class GuidedPolicy(BatchPolicy, Protocol):
    """One whose chunks can be guided to the previous one also after the prefix (real-time chunking's soft mask)."""

    @property
    def guides(self) -> bool: ...

    def predict_batch(
        self,
        observations: Sequence[Observation],
        *,
        prefix: Float[np.ndarray, "b k a"] | None = None,
        previous_chunk_leftover: Float[np.ndarray, "b m a"] | None = None,
        vjp: bool = False,
    ) -> list[ActionChunk | None]:
        """`previous_chunk_leftover` are the old chunk's m actions after the prefix; `vjp` as in
        `vla.models.action_heads.rtc_guidance.RTCGuidance`."""
        ...


def guides(policy: Policy | BatchPolicy) -> bool:
    """Whether its chunks can be guided: those of a flow can."""
    return isinstance(policy, GuidedPolicy) and policy.guides
