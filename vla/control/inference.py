"""Asynchronous inference: requests, answers, and the interface between the control loop and a policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from vla.embodiment import Embodiment
from vla.errors import InputError
from vla.policies.data_summary import DataSummary, data_of
from vla.policies.history import history_of
from vla.policies.policy import BatchPolicy, Policy, guides, takes_prefix
from vla.types import ActionChunk, Observation, RTCPrefix

PREFIXED = ("rtc", "guided", "guided-vjp")
"""Executions of `vla.control.action_queue` that pass an action prefix to the policy."""


class InferenceDied(Exception):
    """The thread or process of the policy has ended."""


@dataclass(frozen=True)
class Request:
    """A request for an action chunk.

    Attributes:
        observation: The observation to act on.
        prefix: The actions that are executed during the inference delay, with which the chunk begins, and for guidance
            the leftover of the previous chunk.
        start: Policy step of the chunk's first action, counted from the start of the run.
    """

    observation: Observation
    prefix: RTCPrefix | None
    start: int

    @property
    def shape(self) -> tuple[Any, ...]:
        """Requests of equal shape can form a batch: lengths of the prefix and the leftover, and guidance mode."""
        if self.prefix is None:
            return ()
        leftover = self.prefix.leftover
        return len(self.prefix.committed), None if leftover is None else len(leftover), self.prefix.guidance_mode


def predict(policy: Policy, requests: Sequence[Request]) -> list[ActionChunk | None]:
    """The chunks of `policy` for requests of one shape, in one batch if the policy supports batches."""
    if not isinstance(policy, BatchPolicy):
        return [policy.predict(request.observation, prefix=request.prefix) for request in requests]
    prefix = RTCPrefix.stack([request.prefix for request in requests])
    return policy.predict_batch([request.observation for request in requests], prefix=prefix)


def check_execution(policy: Policy, execution: str) -> None:
    """Checks that the policy supports the execution mode.

    Raises:
        InputError: for guidance or an action prefix that the policy does not support.
    """
    if "guided" in execution and not guides(policy):
        raise InputError(f"execution {execution} needs a flow head, which this policy does not have")
    if execution in PREFIXED and not takes_prefix(policy):
        raise InputError(
            f"execution {execution} needs action prefixes, which this policy does not take: choose chunked"
        )


@dataclass(frozen=True)
class PolicyInfo:
    """Properties of a policy that runs in another thread or process."""

    embodiment: Embodiment
    history: tuple[float, ...]
    """Offsets of past frames [s] (`HistoryPolicy`)."""
    data: DataSummary
    takes_prefix: bool

    @classmethod
    def of(cls, policy: Policy) -> PolicyInfo:
        """The properties of `policy`."""
        return cls(policy.embodiment, history_of(policy), data_of(policy), takes_prefix(policy))


@dataclass(frozen=True)
class Answer:
    """The answer to a request.

    Attributes:
        request: The request.
        chunk: The action chunk; None if the policy produced no valid one.
        requested: Time of the request [s].
        answered: Time of the answer [s].
        reason: Why there is no chunk.
    """

    request: Request
    chunk: ActionChunk | None
    requested: float
    answered: float
    reason: str = ""


@runtime_checkable
class Inference(Protocol):
    """A policy that runs in another thread or process.

    `history` are the offsets of the past frames in its observations (`HistoryPolicy`).
    """

    @property
    def history(self) -> tuple[float, ...]:
        """Age of each past frame [s], oldest first."""
        ...

    def submit(self, request: Request) -> None:
        """Submits a request without blocking. It replaces a pending request that has not started.

        Raises:
            InferenceDied: if the thread or process has ended.
        """

    def answer(self) -> Answer | None:
        """The newest answer, returned once; None if there is none.

        Raises:
            InferenceDied: if the thread or process has ended.
        """

    @property
    def busy(self) -> bool:
        """Whether a request is being processed."""

    def close(self) -> None:
        """Ends the thread or process."""
        ...
