"""An emulated bus on a pseudo-terminal, with the arm simulated in real time."""

from __future__ import annotations

import os
import pty
import select
import threading
import time
import tty
from collections import deque
from pathlib import Path
from types import TracebackType

from vla.common.thread_priority import realtime_priority
from vla.errors import InputError
from vla.robots.feetech_emulator.arm import ServoArm
from vla.robots.feetech_emulator.bus import Bus

BEHIND = 0.1
"""Largest backlog of simulated time [s] that is caught up; more is skipped."""


class ServoPort:
    """Steps the arm at absolute deadlines from a thread, and answers requests between the steps.

    `path` is the port for a driver: `link` if set, else the pseudo-terminal. `skipped` is the skipped simulated time
    [s].

    Args:
        arm: The arm.
        link: A symbolic link to create for the pseudo-terminal.

    Raises:
        InputError: if `link` exists and is not a symbolic link.
    """

    def __init__(self, arm: ServoArm, link: str | Path | None = None) -> None:
        self.arm, self.bus, self.link = arm, Bus(arm.servos), Path(link) if link else None
        if self.link and self.link.exists() and not self.link.is_symlink():
            raise InputError(f"{self.link} exists and is no link: choose another name for the port")
        self.path, self.skipped = "", 0.0
        self._master, self._slave, self._plugged = -1, -1, True
        self._wake, self._waker = os.pipe()
        self._changed, self._over = threading.Event(), False
        self._due: deque[tuple[float, bytes]] = deque()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="servo bus", daemon=True)

    def __enter__(self) -> ServoPort:
        self._connect()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over = True
        os.write(self._waker, b".")
        self._thread.join()
        self._disconnect()
        os.close(self._wake)
        os.close(self._waker)
        if self._failure is not None and error is None:
            raise self._failure

    def unplug(self) -> None:
        """Unplugs USB cable and supply: removes the port and powers the servos off."""
        self._change(False)

    def plug(self) -> None:
        """Restores the port, at the same path if `link` is set, with servos as after power-on."""
        self._change(True)

    def _change(self, plugged: bool) -> None:
        self._changed.clear()
        self._plugged = plugged
        os.write(self._waker, b".")
        self._changed.wait(5.0)

    def _connect(self) -> None:
        self._master, self._slave = pty.openpty()
        tty.setraw(self._slave)
        os.set_blocking(self._master, False)
        # The slave stays open here, so that a driver that disconnects causes no hang-up.
        self.path = os.ttyname(self._slave)
        if self.link:
            temporary = self.link.with_name(f".{self.link.name}.{os.getpid()}")
            temporary.unlink(missing_ok=True)
            temporary.symlink_to(self.path)
            temporary.replace(self.link)
            self.path = str(self.link)

    def _disconnect(self) -> None:
        if self._master < 0:
            return
        if self.link:
            self.link.unlink(missing_ok=True)
        os.close(self._master)
        os.close(self._slave)
        self._master = self._slave = -1
        self._due.clear()

    def _run(self) -> None:
        try:
            with realtime_priority():  # real servos are not delayed by other programs either
                self._loop()
        except BaseException as error:
            self._failure = error

    def _loop(self) -> None:
        due = time.monotonic()
        while not self._over:
            self._serve(due)
            if self._plugged != (self._master >= 0):
                self._connect() if self._plugged else self._disconnect()
                # Servos restart after the supply was off.
                self.bus.power_on()
                self._changed.set()
            now = time.monotonic()
            if now - due > BEHIND:
                self.skipped += now - due
                due = now
            if due <= now:
                self.arm.step()
                due += self.arm.dt

    def _serve(self, until: float) -> None:
        """Answers requests until the next step is due, at least once."""
        while True:
            deadline = min(until, self._due[0][0]) if self._due else until
            sources = [self._wake] if self._master < 0 else [self._wake, self._master]
            ready, _, _ = select.select(sources, [], [], max(0.0, deadline - time.monotonic()))
            if self._wake in ready:
                os.read(self._wake, 64)
                return
            if self._master in ready:
                answer = self.bus.answer(os.read(self._master, 4096))
                if answer:
                    self._due.append((time.monotonic() + self.bus.faults.delay, answer))
            while self._due and self._due[0][0] <= time.monotonic():
                os.write(self._master, self._due.popleft()[1])
            if time.monotonic() >= until:
                return
