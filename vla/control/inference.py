"""How the control loop asks a policy without waiting for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from vla.types import ActionChunk, Observation


class InferenceDied(Exception):
    """The thread or process that answers has ended."""


@dataclass(frozen=True)
class Request:
    """An observation to answer. The chunk's first action stands at policy step `start`, counted from the run's first.

    The chunk is to begin with `prefix`, the actions that are carried out before it can come.
    """

    observation: Observation
    prefix: Float[np.ndarray, "k a"] | None
    start: int


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
    """A policy that thinks elsewhere."""

    def ask(self, request: Request) -> None:
        """Never blocks. A request that was not begun yet is replaced: the latest observation wins."""

    def answer(self) -> Answer | None:
        """The newest answer, once; None where there is none. Raises InferenceDied."""

    @property
    def busy(self) -> bool:
        """Whether a request is under way."""

    def close(self) -> None: ...
