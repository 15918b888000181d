"""A bus on a pseudo-terminal, its arm simulated in real time."""

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
"""How much simulated time it makes up for at most [s] when the machine had no time for it; the rest is left out."""


class ServoPort:
    """While open, a thread steps the arm against absolute deadlines and answers between the steps.

    `path` is the port to give to a driver: `link`, if that is set, else the pseudo-terminal itself. `unplug` and `plug`
    are those of the USB cable and of the supply. Raises InputError where `link` is something that is no link.
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
        """The port vanishes; the servos lose their supply."""
        self._change(False)

    def plug(self) -> None:
        """The port is back, at `path` if that is a link, with servos as after power-on."""
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
        # Our own end of the slave stays open, so that a driver that leaves is no hang-up.
        self.path = os.ttyname(self._slave)
        if self.link:
            fresh = self.link.with_name(f".{self.link.name}.{os.getpid()}")
            fresh.unlink(missing_ok=True)
            fresh.symlink_to(self.path)
            fresh.replace(self.link)
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
            with realtime_priority():  # as servos do, which wait for no other program before they answer
                self._go_on()
        except BaseException as error:
            self._failure = error

    def _go_on(self) -> None:
        due = time.monotonic()
        while not self._over:
            self._serve(due)
            if self._plugged != (self._master >= 0):
                self._connect() if self._plugged else self._disconnect()
                # Without supply a servo lets go; with it again it starts anew.
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
        """Answers until the next step is due; at least once."""
        while True:
            moment = min(until, self._due[0][0]) if self._due else until
            sources = [self._wake] if self._master < 0 else [self._wake, self._master]
            ready, _, _ = select.select(sources, [], [], max(0.0, moment - time.monotonic()))
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
