"""A policy that thinks in a thread of this process: for a server's client, and for tests."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from vla.control.inference import Answer, InferenceDied, Request, predict
from vla.errors import InputError
from vla.policies.history import history_of
from vla.policies.policy import Policy


def answer(policy: Policy, request: Request, asked: float, now: Callable[[], float] = time.monotonic) -> Answer:
    """What the policy says; what it raises is the reason why it says nothing."""
    try:
        (chunk,) = predict(policy, [request])
        reason = "" if chunk is not None else "no valid chunk"
    except InputError as error:
        chunk, reason = None, str(error)
    except Exception as error:
        chunk, reason = None, f"{type(error).__name__}: {error}"
    return Answer(request, chunk, asked, now(), reason)


class ThreadInference:
    """See `Inference`. A policy in Python shares its interpreter with the loop, which may cost the loop deadlines."""

    def __init__(self, policy: Policy) -> None:
        self._policy, self._changed = policy, threading.Condition()
        self.history = history_of(policy)
        self._waiting: tuple[Request, float] | None = None
        self._thinking = self._closing = False
        self._answer: Answer | None = None
        policy.reset()
        self._thread = threading.Thread(target=self._think, name="policy", daemon=True)
        self._thread.start()

    def ask(self, request: Request) -> None:
        with self._changed:
            self._waiting = request, time.monotonic()
            self._changed.notify()

    def answer(self) -> Answer | None:
        with self._changed:
            said, self._answer = self._answer, None
        if said is None and not self._thread.is_alive():
            raise InferenceDied("the policy's thread has ended")
        return said

    @property
    def busy(self) -> bool:
        with self._changed:
            return self._thinking or self._waiting is not None

    def close(self) -> None:
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout=1.0)

    def _think(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing or self._waiting is not None)
                if self._closing or self._waiting is None:
                    return
                (request, asked), self._waiting = self._waiting, None
                self._thinking = True
            said = answer(self._policy, request, asked)
            with self._changed:
                self._thinking, self._answer = False, said
