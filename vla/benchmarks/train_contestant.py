"""A training loop in a separate process that runs a number of steps on request, and is stopped in between.

The complete process group is stopped (SIGSTOP), including data loaders, so that no work is done during the turns of
others.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

Measured = dict[str, float]
"""Of a turn: seconds `s`, `cpu` seconds of all its processes, seconds `waited` for data, and `flops` per sample."""


class Finished(BaseException):
    """There are no more turns."""


class Turns:
    """The interface in the loop's process: `end` reports a turn, and returns when the next begins."""

    def __init__(self, connection: Connection, steps: int) -> None:
        self.steps, self._connection = steps, connection
        self._start = time.perf_counter()

    def end(self, **measured: float) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._connection.send({"s": time.perf_counter() - self._start, **measured})
        if not self._connection.recv():
            raise Finished
        self._start = time.perf_counter()


class Contestant:
    """Runs `loop(turns, *arguments)`, an endless loop that calls `turns.end` after every `steps` steps.

    Its output is written to the file `log`. The constructor returns after the first turn, with initialization.
    """

    def __init__(self, loop: Callable[..., None], steps: int, log: Path, *arguments: Any) -> None:
        context = get_context("spawn")
        self._connection, other = context.Pipe()
        self._log = log
        self._process = context.Process(target=_run, args=(loop, other, steps, log, *arguments))
        self._process.start()
        other.close()
        self.first = self._result()

    @property
    def alive(self) -> bool:
        return self._process.is_alive()

    def turn(self) -> Measured:
        before = self._cpu_seconds()
        self._signal(signal.SIGCONT)
        self._connection.send(True)
        return self._result() | {"cpu": self._cpu_seconds() - before}

    def _cpu_seconds(self) -> float:
        """The CPU time of the process group so far."""
        ticks = 0
        for file in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = file.read_text().rpartition(")")[2].split()
            except OSError:  # it has just ended
                continue
            if int(fields[2]) == self._process.pid:
                ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        if self.alive:
            self._signal(signal.SIGCONT)
            self._connection.send(False)
            self._process.join(20)
        if self.alive:
            self._signal(signal.SIGKILL)
            self._process.join()

    def _result(self) -> Measured:
        try:
            measured: Measured = self._connection.recv()
        except EOFError:
            self._process.join()
            raise RuntimeError(f"the training process ended:\n{self._log.read_text()[-3000:]}") from None
        self._signal(signal.SIGSTOP)
        return measured

    def _signal(self, number: int) -> None:
        assert self._process.pid is not None
        os.killpg(self._process.pid, number)


def _run(loop: Callable[..., None], connection: Connection, steps: int, log: Path, *arguments: Any) -> None:
    os.setsid()
    file = os.open(log, os.O_WRONLY | os.O_CREAT)
    os.dup2(file, 1)
    os.dup2(file, 2)
    try:
        loop(Turns(connection, steps), *arguments)
    except Finished:
        sys.exit(0)
