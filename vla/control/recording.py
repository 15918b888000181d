"""A run of the control loop written down, while it goes on and beside it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue

import numpy as np
from jaxtyping import Float

from vla.control.tick import Tick
from vla.errors import InputError
from vla.recording.protocol import Recorder
from vla.types import Observation


@dataclass
class Trace:
    """What the page of a run is drawn from, tick by tick; what was not sent is NaN. Times are the clock's [s]."""

    time: list[float] = field(default_factory=list)
    state: list[Float[np.ndarray, "s"]] = field(default_factory=list)
    sent: list[Float[np.ndarray, "a"]] = field(default_factory=list)
    late: list[float] = field(default_factory=list)
    command: list[float] = field(default_factory=list)
    answers: list[tuple[float, float]] = field(default_factory=list)
    """When an answer came, and how long the policy took for it."""

    def add(self, tick: Tick, width: int) -> None:
        self.time.append(tick.time)
        self.state.append(tick.state)
        self.sent.append(np.full(width, np.nan) if tick.sent is None else tick.sent)
        self.late.append(tick.time - tick.scheduled)
        self.command.append(tick.command)
        if tick.infer is not None:
            self.answers.append((tick.time, tick.infer))


class Recording:
    """Give it to the loop as `watch`: it only puts ticks into a queue, which a thread of its own writes down.

    A step of the episode is what was seen at the end of a step of the policy, with the command that had been sent by
    the next: so it holds what was done, whatever the policy said. `failed` is what went wrong in a recorder; the others
    go on.
    """

    def __init__(self, recorders: Sequence[Recorder], width: int) -> None:
        self.trace, self.steps = Trace(), 0
        self.failed: list[str] = []
        self._recorders, self._width = list(recorders), width
        self._queue: SimpleQueue[Tick | None] = SimpleQueue()
        self._seen: Observation | None = None
        self._thread = threading.Thread(target=self._write, name="recording", daemon=True)

    def start(self, instruction: str, **info: object) -> None:
        self._each(lambda recorder: recorder.start(instruction, **info))
        self._thread.start()

    def __call__(self, tick: Tick) -> None:
        self._queue.put(tick)

    def finish(self, success: bool | None, keep: bool = True) -> None:
        """Waits until all is written; an episode without a step is dropped, and one that is not to be kept."""
        self._queue.put(None)
        self._thread.join()
        self._each(lambda recorder: recorder.finish(success) if keep and self.steps else recorder.abort())

    def _write(self) -> None:
        last: Float[np.ndarray, "a"] | None = None
        while (tick := self._queue.get()) is not None:
            self.trace.add(tick, self._width)
            last = tick.sent if tick.sent is not None else last
            if tick.observation is None:
                continue
            if self._seen is not None and last is not None:
                self._step(self._seen, last)
            self._seen = tick.observation

    def _step(self, seen: Observation, action: Float[np.ndarray, "a"]) -> None:
        self.steps += 1
        self._each(lambda recorder: recorder.step(seen, action))

    def _each(self, call: Callable[[Recorder], None]) -> None:
        for recorder in list(self._recorders):
            try:
                call(recorder)
            except (InputError, OSError, RuntimeError) as error:
                self.failed.append(f"{type(recorder).__name__}: {error}")
                self._recorders.remove(recorder)
