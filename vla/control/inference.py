"""How the control loop asks a policy without waiting for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from vla.embodiment import Embodiment
from vla.errors import InputError
from vla.policies.data_summary import DataSummary, data_of
from vla.policies.history import history_of
from vla.policies.policy import BatchPolicy, Policy, guides, takes_prefix
from vla.types import ActionChunk, Observation

PREFIXED = ("rtc", "guided", "guided-vjp")
"""Executions of `vla.control.action_queue` that give the policy the actions with which its chunk is to begin."""


class InferenceDied(Exception):
    """The thread or process that answers has ended."""


@dataclass(frozen=True)
class Request:
    """An observation to answer. The chunk's first action stands at policy step `start`, counted from the run's first.

    The chunk is to begin with `prefix`, the actions that are carried out before it can come. Where `previous_chunk_leftover` is given,
    the old chunk's actions after those, it is drawn to them, `vjp` as in `vla.models.action_heads.rtc_guidance.RTCGuidance`.
    """

    observation: Observation
    prefix: Float[np.ndarray, "k a"] | None
    start: int
    previous_chunk_leftover: Float[np.ndarray, "m a"] | None = None
    vjp: bool = False

    @property
    def shape(self) -> tuple[int, int, bool]:
        """What requests of one batch have in common."""
        return (
            0 if self.prefix is None else len(self.prefix),
            0 if self.previous_chunk_leftover is None else len(self.previous_chunk_leftover),
            self.vjp,
        )


def predict(policy: Policy, requests: Sequence[Request]) -> list[ActionChunk | None]:
    """What `policy` says to requests of one shape, in one batch if it takes batches."""
    if not isinstance(policy, BatchPolicy):
        return [policy.predict(request.observation, prefix=request.prefix) for request in requests]
    prefixes = [request.prefix for request in requests if request.prefix is not None]
    previous_chunk_leftover = [
        request.previous_chunk_leftover for request in requests if request.previous_chunk_leftover is not None
    ]
    guide: dict[str, Any] = (
        {"previous_chunk_leftover": np.stack(previous_chunk_leftover), "vjp": requests[0].vjp}
        if previous_chunk_leftover
        else {}
    )
    given = np.stack(prefixes) if prefixes else None
    return policy.predict_batch([request.observation for request in requests], prefix=given, **guide)


def check_execution(policy: Policy, execution: str) -> None:
    """Raises InputError where `execution` guides a policy that cannot be, or gives a prefix to one that takes none."""
    if "guided" in execution and not guides(policy):
        raise InputError(f"execution {execution} is for flows: this policy's chunks come from none")
    if execution in PREFIXED and not takes_prefix(policy):
        raise InputError(f"execution {execution} gives prefixes, which this policy takes none of: choose chunked")


@dataclass(frozen=True)
class PolicyInfo:
    """What is known of a policy that thinks elsewhere."""

    embodiment: Embodiment
    history: tuple[float, ...]
    """As `HistoryPolicy`."""
    data: DataSummary
    takes_prefix: bool

    @classmethod
    def of(cls, policy: Policy) -> PolicyInfo:
        return cls(policy.embodiment, history_of(policy), data_of(policy), takes_prefix(policy))


@dataclass(frozen=True)
class Answer:
    """`chunk` is None where the policy gave no valid one, and `reason` says why. Times are the clock's [s]."""

    request: Request
    chunk: ActionChunk | None
    asked: float
    answered: float
    reason: str = ""


@runtime_checkable
class Inference(Protocol):
    """A policy that thinks elsewhere; `history` are the past frames that it is to be shown (`HistoryPolicy`)."""

    @property
    def history(self) -> tuple[float, ...]: ...

    def ask(self, request: Request) -> None:
        """Never blocks. A request that was not begun yet is replaced: the latest observation wins."""

    def answer(self) -> Answer | None:
        """The newest answer, once; None where there is none. Raises InferenceDied."""

    @property
    def busy(self) -> bool:
        """Whether a request is under way."""

    def close(self) -> None: ...
