"""A policy in a separate process, so that its interpreter does not block the control loop."""

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
"""Niceness added to the policy's process. Without it, the loop misses deadlines on few cores."""
EXIT_TIMEOUT = 2.0
"""Time [s] that the process has to exit by itself."""


class ProcessInference:
    """`Inference` in a separate process. Images go through shared memory, everything else through a pipe.

    Args:
        load: Builds the policy in the new process; must be picklable.

    Raises:
        InputError: if `load` raises it.
        InferenceDied: if the process ends before the policy is loaded.
    """

    def __init__(self, load: Callable[[], Policy]) -> None:
        context = get_context("forkserver")
        self._pipe, child_pipe = context.Pipe()
        self._process = context.Process(target=_serve, args=(load, child_pipe), name="policy", daemon=True)
        self._process.start()
        child_pipe.close()
        self._images: SharedMemory | None = None
        self._running: tuple[Request, float] | None = None
        self._pending: tuple[Request, float] | None = None
        try:
            message = self._pipe.recv()
        except EOFError:
            self.close()
            raise InferenceDied("the policy's process ended while it loaded the policy") from None
        if isinstance(message, str):
            self.close()
            raise InputError(message)
        self.info: PolicyInfo = message

    @property
    def history(self) -> tuple[float, ...]:
        """See `Inference`."""
        return self.info.history

    def submit(self, request: Request) -> None:
        """See `Inference`."""
        self._pending = request, time.monotonic()
        self._send()

    def answer(self) -> Answer | None:
        """See `Inference`."""
        try:
            if not self._pipe.poll():
                if not self._process.is_alive():
                    raise EOFError
                return None
            chunk, reason, answered = self._pipe.recv()
        except (EOFError, OSError) as error:
            self._process.join(0.01)  # the pipe closes shortly before the exit code is available
            raise InferenceDied(f"the policy's process has ended (exit code {self._process.exitcode})") from error
        assert self._running is not None
        (request, requested), self._running = self._running, None
        self._send()
        return Answer(request, chunk, requested, answered, reason)

    @property
    def busy(self) -> bool:
        """See `Inference`."""
        return self._running is not None

    def close(self) -> None:
        """Ends the process; kills it if it hangs."""
        with suppress(OSError):
            self._pipe.close()
        self._process.join(EXIT_TIMEOUT if self._running is None else 0.1)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        if self._images is not None:
            self._images.close()
            self._images.unlink()
            self._images = None

    def _send(self) -> None:
        """Sends the pending request if the process is idle: only then is the shared memory unused."""
        if self._running is not None or self._pending is None:
            return
        self._running, self._pending = self._pending, None
        request = self._running[0]
        images = images_of(request.observation)
        size = sum(image.nbytes for image in images.values())
        if self._images is None or self._images.size < size:
            if self._images is not None:
                self._images.close()
                self._images.unlink()
            self._images = SharedMemory(create=True, size=max(size, 1))
        shapes = {camera: image.shape for camera, image in images.items()}
        for camera, view in views(self._images, shapes).items():
            view[:] = images[camera]
        message = replace(request, observation=without_images(request.observation))
        try:
            self._pipe.send((self._images.name, shapes, message, self._running[1]))
        except OSError as error:
            raise InferenceDied("the policy's process has ended") from error


def _be_nice() -> None:
    """Raises the niceness of all threads of this process: on Linux niceness is per thread, inherited by new threads."""
    tasks = Path("/proc/self/task")
    if not tasks.is_dir():
        os.nice(NICE)
        return
    for thread in tasks.iterdir():
        with suppress(ProcessLookupError):
            tid = int(thread.name)
            os.setpriority(os.PRIO_PROCESS, tid, os.getpriority(os.PRIO_PROCESS, tid) + NICE)


def _serve(load: Callable[[], Policy], pipe: Connection) -> None:
    """Main function of the process; returns when the pipe is closed. Signals are handled by the parent alone."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    try:
        policy = load()
        policy.reset()
    except InputError as error:
        pipe.send(str(error))
        return
    _be_nice()  # only now: the loop has no deadlines while a policy is loaded
    pipe.send(PolicyInfo.of(policy))
    memory: SharedMemory | None = None
    with suppress(EOFError, ConnectionError):
        while True:
            name, shapes, request, requested = pipe.recv()
            if memory is None or memory.name != name:
                if memory is not None:
                    memory.close()
                memory = SharedMemory(name)
            images = {camera: view.copy() for camera, view in views(memory, shapes).items()}
            observation = with_images(request.observation, images)
            result = answer(policy, replace(request, observation=observation), requested)
            pipe.send((result.chunk, result.reason, result.answered))
    if memory is not None:
        memory.close()
