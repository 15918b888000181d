"""A policy in a process of its own, so that its Python never holds up the control loop."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

from vla.control.inference import Answer, InferenceDied, PolicyInfo, Request
from vla.control.shared_images import images_of, views, with_images, without_images
from vla.control.stop import SIGNALS
from vla.control.thread_inference import answer
from vla.errors import InputError
from vla.policies.policy import Policy

NICE = 10
"""By which the policy's process is nicer than the loop's: on few cores it would cost the loop deadlines else."""
FAREWELL = 2.0
"""[s] that the process has to end by itself."""


class ProcessInference:
    """See `Inference`. `load` makes the policy in the new process; it and what it makes the policy of must be sendable.

    Images go through shared memory, all else, which is small, through a pipe. Raises InputError for what `load`
    raises as such, and InferenceDied where the process ends before the policy is there.
    """

    def __init__(self, load: Callable[[], Policy]) -> None:
        context = get_context("forkserver")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(load, theirs), name="policy", daemon=True)
        self._process.start()
        theirs.close()
        self._images: SharedMemory | None = None
        self._asked: tuple[Request, float] | None = None
        self._waiting: tuple[Request, float] | None = None
        try:
            told = self._pipe.recv()
        except EOFError:
            self.close()
            raise InferenceDied("the policy's process ended while it loaded the policy") from None
        if isinstance(told, str):
            self.close()
            raise InputError(told)
        self.about: PolicyInfo = told

    @property
    def history(self) -> tuple[float, ...]:
        """See `Inference`."""
        return self.about.history

    def ask(self, request: Request) -> None:
        self._waiting = request, time.monotonic()
        self._send()

    def answer(self) -> Answer | None:
        try:
            if not self._pipe.poll():
                if not self._process.is_alive():
                    raise EOFError
                return None
            chunk, reason, answered = self._pipe.recv()
        except (EOFError, OSError) as error:
            self._process.join(0.01)  # its pipe closes a moment before its exit code is there
            raise InferenceDied(f"the policy's process has ended (exit code {self._process.exitcode})") from error
        assert self._asked is not None
        (request, asked), self._asked = self._asked, None
        self._send()
        return Answer(request, chunk, asked, answered, reason)

    @property
    def busy(self) -> bool:
        return self._asked is not None

    def close(self) -> None:
        """Ends the process, with force where it hangs."""
        with suppress(OSError):
            self._pipe.close()
        self._process.join(FAREWELL if self._asked is None else 0.1)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        if self._images is not None:
            self._images.close()
            self._images.unlink()
            self._images = None

    def _send(self) -> None:
        """The request that waits, where the process is free: only then is the memory of the images."""
        if self._asked is not None or self._waiting is None:
            return
        self._asked, self._waiting = self._waiting, None
        request = self._asked[0]
        images = images_of(request.observation)
        size = sum(image.nbytes for image in images.values())
        if self._images is None or self._images.size < size:
            if self._images is not None:
                self._images.close()
                self._images.unlink()
            self._images = SharedMemory(create=True, size=max(size, 1))
        shapes = {camera: image.shape for camera, image in images.items()}
        for camera, place in views(self._images, shapes).items():
            place[:] = images[camera]
        seen = without_images(request.observation)
        try:
            self._pipe.send((self._images.name, shapes, replace(request, observation=seen), self._asked[1]))
        except OSError as error:
            raise InferenceDied("the policy's process has ended") from error


def _be_nice() -> None:
    """All threads of this process: on Linux each has a niceness of its own, which it passes on to those it starts."""
    tasks = Path("/proc/self/task")
    if not tasks.is_dir():
        os.nice(NICE)
        return
    for thread in tasks.iterdir():
        with suppress(ProcessLookupError):
            tid = int(thread.name)
            os.setpriority(os.PRIO_PROCESS, tid, os.getpriority(os.PRIO_PROCESS, tid) + NICE)


def _serve(load: Callable[[], Policy], pipe: Connection) -> None:
    """The process: until the pipe is closed. The parent decides what a signal means, and has the processor first."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    try:
        policy = load()
        policy.reset()
    except InputError as error:
        pipe.send(str(error))
        return
    _be_nice()  # only now: nothing waits for the loop's deadlines while a policy is loaded
    pipe.send(PolicyInfo.of(policy))
    memory: SharedMemory | None = None
    with suppress(EOFError, ConnectionError):
        while True:
            name, shapes, request, asked = pipe.recv()
            if memory is None or memory.name != name:
                if memory is not None:
                    memory.close()
                memory = SharedMemory(name)
            images = {camera: view.copy() for camera, view in views(memory, shapes).items()}
            observation = with_images(request.observation, images)
            said = answer(policy, replace(request, observation=observation), asked)
            pipe.send((said.chunk, said.reason, said.answered))
    if memory is not None:
        memory.close()
