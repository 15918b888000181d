"""Records a run of the control loop in a background thread."""

from __future__ import annotations

import logging
import threading
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from queue import SimpleQueue

import numpy as np
from jaxtyping import Float

from vla.common.full_disk import explain_full_disk
from vla.control.tick import Tick
from vla.errors import InputError
from vla.recording.recorder import Recorder
from vla.types import Observation

LOG = logging.getLogger(__name__)
BEHIND = 5.0
"""[s] for which images may wait to be written. Two cameras of 640x480 at 30 Hz are 54 MiB a second."""
RECENT = 20.0
"""[s] of a run that are drawn joint by joint: the last ones. All of an hour would be 40 MB at 100 Hz."""
FEW = 10
"""Queue length that is accepted at any age: the process may have been suspended."""
FASTER = "the disk or the encoding is too slow for them; codec=lz4 is faster, codec=jpeg needs less disk space"


class Trace:
    """What the page of a run is drawn from. Times are the clock's [s]."""

    def __init__(self) -> None:
        self.time, self.late = array("d"), array("d")
        """Of all ticks."""
        self.answers: deque[float] = deque()
        """When answers of the policy came, in the last `RECENT` [s]."""
        self._recent: deque[tuple[float, np.ndarray, np.ndarray]] = deque()

    @property
    def recent(self) -> Float[np.ndarray, "t"]:
        """The times of the ticks of the last `RECENT` [s], of which `state` and `sent` are."""
        return np.array([time for time, _, _ in self._recent])

    @property
    def state(self) -> Float[np.ndarray, "t s"]:
        """The states at the times of `recent`."""
        return np.array([state for _, state, _ in self._recent])

    @property
    def sent(self) -> Float[np.ndarray, "t a"]:
        """NaN where nothing was."""
        return np.array([sent for _, _, sent in self._recent])

    def add(self, tick: Tick, width: int) -> None:
        """Appends a tick; `width` is the number of actions."""
        self.time.append(tick.time)
        self.late.append(tick.time - tick.scheduled)
        sent = np.full(width, np.nan) if tick.sent is None else np.array(tick.sent)
        self._recent.append((tick.time, np.array(tick.state), sent))
        if tick.infer is not None:
            self.answers.append(tick.time)
        while self._recent[0][0] < tick.time - RECENT:
            self._recent.popleft()
        while self.answers and self.answers[0] < tick.time - RECENT:
            self.answers.popleft()


class Recording:
    """Records the ticks of a run. Pass it to the loop as `watch`: it queues ticks, which a thread writes.

    A step of the episode is the observation at the end of a policy step, with the last command sent before the next
    observation. It therefore holds the executed command and not the predicted action.

    A recorder that fails is dropped, and the others continue. If the thread falls `BEHIND` [s] behind, all recorders
    end, because an episode must not have gaps. `failed` lists the failures.

    Args:
        recorders: The recorders.
        width: Number of actions.
        required: Whether the next tick raises InputError after a failure. Else it is logged and the run continues.
    """

    def __init__(self, recorders: Sequence[Recorder], width: int, required: bool = True) -> None:
        self.trace, self.steps = Trace(), 0
        self.failed: list[str] = []
        self._recorders, self._width, self._required = list(recorders), width, required
        self._queue: SimpleQueue[Tick | None] = SimpleQueue()
        self._waiting: deque[float] = deque()
        self._dropped = self._discarded = 0
        self._observation: Observation | None = None
        self._thread = threading.Thread(target=self._write, name="recording", daemon=True)

    def start(self, instruction: str, **info: object) -> None:
        """Starts the recorders and the thread; errors of a recorder are raised, before the arm moves."""
        for recorder in self._recorders:
            recorder.start(instruction, **info)
        self._thread.start()

    def __call__(self, tick: Tick) -> None:
        """Queues a tick without waiting. Ticks beyond the allowed backlog are queued without images, to save memory."""
        if self.failed and self._required:
            raise InputError(f"the episode is not stored: {self.failed[0]}")
        if tick.observation is not None:
            if not self._dropped:
                self._waiting.append(tick.time)
            if self._dropped or (len(self._waiting) > FEW and tick.time - self._waiting[0] > BEHIND):
                self._dropped += 1
                tick = replace(tick, observation=None)
        self._queue.put(tick)

    def finish(self, success: bool | None, keep: bool = True) -> None:
        """Waits until everything is written. Drops an episode without steps, or if `keep` is False."""
        self._queue.put(None)
        self._thread.join()
        self._call_all(lambda recorder: recorder.finish(success) if keep and self.steps else recorder.abort())
        if self._dropped:
            self.failed.append(f"{self._dropped + self._discarded} observations were dropped")

    def _write(self) -> None:
        last: Float[np.ndarray, "a"] | None = None
        while (tick := self._queue.get()) is not None:
            self.trace.add(tick, self._width)
            last = tick.sent if tick.sent is not None else last
            if self._dropped:
                self._discarded += tick.observation is not None
                self._fall_behind()
            elif tick.observation is not None:
                if self._observation is not None and last is not None:
                    self._step(self._observation, last)
                self._observation = tick.observation
                self._waiting.popleft()

    def _step(self, observation: Observation, action: Float[np.ndarray, "a"]) -> None:
        self.steps += 1
        self._call_all(lambda recorder: recorder.step(observation, action))

    def _fall_behind(self) -> None:
        if self._recorders:
            self._call_all(lambda recorder: recorder.abort())
            self._recorders.clear()
            self._fail(f"recording fell {BEHIND:g} s behind the cameras, and ended after {self.steps} steps: {FASTER}")

    def _call_all(self, call: Callable[[Recorder], None]) -> None:
        for recorder in list(self._recorders):
            try:
                call(recorder)
            except Exception as error:
                self._recorders.remove(recorder)
                with suppress(Exception):
                    recorder.abort()
                self._fail(f"{type(recorder).__name__}: {explain_full_disk(error) or error}")

    def _fail(self, reason: str) -> None:
        self.failed.append(reason)
        if not self._required:
            LOG.warning("not recorded: %s", reason)
