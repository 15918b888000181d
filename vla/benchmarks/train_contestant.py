"""A training loop in a process of its own that goes on for some steps each time it is told to, and then stands still.

It is stopped with all its processes, so that what reads its data ahead stands still too: nothing is done for it
in another's time, and it goes on as if there had been no pause.
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
"""Of a turn: its seconds `s`, `cpu` seconds of all its processes, seconds `waited` for data, and `flops` a sample."""


class Finished(BaseException):
    """There are no more turns."""


class Turns:
    """The loop's side: `end` says what a turn was like, and returns when the next begins."""

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
    """Runs `loop(turns, *arguments)`, which calls `turns.end` after every `steps` steps, for ever.

    Its output goes into the file `log`. The first turn, with all that is done once, is over when this returns.
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
        """Of the processes of the group, so far."""
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
            raise RuntimeError(f"it ended:\n{self._log.read_text()[-3000:]}") from None
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
