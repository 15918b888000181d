"""A policy in a thread of this process: for clients of a policy server, and for tests."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from vla.control.inference import Answer, InferenceDied, Request, predict
from vla.errors import InputError
from vla.policies.history import history_of
from vla.policies.policy import Policy


def answer(policy: Policy, request: Request, requested: float, now: Callable[[], float] = time.monotonic) -> Answer:
    """Runs the policy on a request made at `requested` [s]; an exception becomes the reason of an invalid answer."""
    try:
        (chunk,) = predict(policy, [request])
        reason = "" if chunk is not None else "no valid chunk"
    except InputError as error:
        chunk, reason = None, str(error)
    except Exception as error:
        chunk, reason = None, f"{type(error).__name__}: {error}"
    return Answer(request, chunk, requested, now(), reason)


class ThreadInference:
    """`Inference` in a thread. A policy in Python shares the interpreter with the loop, which may miss deadlines."""

    def __init__(self, policy: Policy) -> None:
        self._policy, self._changed = policy, threading.Condition()
        self.history = history_of(policy)
        self._pending: tuple[Request, float] | None = None
        self._running = self._closing = False
        self._answer: Answer | None = None
        policy.reset()
        self._thread = threading.Thread(target=self._run, name="policy", daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> None:
        """See `Inference`."""
        with self._changed:
            self._pending = request, time.monotonic()
            self._changed.notify()

    def answer(self) -> Answer | None:
        """See `Inference`."""
        with self._changed:
            result, self._answer = self._answer, None
        if result is None and not self._thread.is_alive():
            raise InferenceDied("the policy's thread has ended")
        return result

    @property
    def busy(self) -> bool:
        """See `Inference`."""
        with self._changed:
            return self._running or self._pending is not None

    def close(self) -> None:
        """See `Inference`."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout=1.0)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closing or self._pending is not None)
                if self._closing or self._pending is None:
                    return
                (request, requested), self._pending = self._pending, None
                self._running = True
            result = answer(self._policy, request, requested)
            with self._changed:
                self._running, self._answer = False, result
