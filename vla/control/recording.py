"""A run of the control loop written down, while it goes on and beside it."""

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
"""Observations that are no queue, however old: the process may have been stopped for a while."""
FASTER = "the disk or the coding is too slow for them; codec=lz4 takes less time, codec=jpeg less of the disk"


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
        return np.array([state for _, state, _ in self._recent])

    @property
    def sent(self) -> Float[np.ndarray, "t a"]:
        """NaN where nothing was."""
        return np.array([sent for _, _, sent in self._recent])

    def add(self, tick: Tick, width: int) -> None:
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
    """Give it to the loop as `watch`: it only puts ticks into a queue, which a thread of its own writes down.

    A step of the episode is what was seen at the end of a step of the policy, with the command that had been sent by
    the next: so it holds what was done, whatever the policy said.

    A recorder that fails is dropped, and the others go on; where the thread falls `BEHIND` [s] behind, all end, for an
    episode has no holes. `failed` says what went wrong, a line each. Where recorders are `required`, the next tick
    raises InputError; else a line is logged, and the run goes on.
    """

    def __init__(self, recorders: Sequence[Recorder], width: int, required: bool = True) -> None:
        self.trace, self.steps = Trace(), 0
        self.failed: list[str] = []
        self._recorders, self._width, self._required = list(recorders), width, required
        self._queue: SimpleQueue[Tick | None] = SimpleQueue()
        self._waiting: deque[float] = deque()
        self._dropped = self._discarded = 0
        self._seen: Observation | None = None
        self._thread = threading.Thread(target=self._write, name="recording", daemon=True)

    def start(self, instruction: str, **info: object) -> None:
        """Raises what a recorder does that cannot begin: nothing moves yet."""
        for recorder in self._recorders:
            recorder.start(instruction, **info)
        self._thread.start()

    def __call__(self, tick: Tick) -> None:
        """Never waits. Without its images a tick takes next to no memory."""
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
        """Waits until all is written; an episode without a step is dropped, and one that is not to be kept."""
        self._queue.put(None)
        self._thread.join()
        self._each(lambda recorder: recorder.finish(success) if keep and self.steps else recorder.abort())
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
                if self._seen is not None and last is not None:
                    self._step(self._seen, last)
                self._seen = tick.observation
                self._waiting.popleft()

    def _step(self, seen: Observation, action: Float[np.ndarray, "a"]) -> None:
        self.steps += 1
        self._each(lambda recorder: recorder.step(seen, action))

    def _fall_behind(self) -> None:
        if self._recorders:
            self._each(lambda recorder: recorder.abort())
            self._recorders.clear()
            self._fail(f"recording fell {BEHIND:g} s behind the cameras, and ended after {self.steps} steps: {FASTER}")

    def _each(self, call: Callable[[Recorder], None]) -> None:
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
