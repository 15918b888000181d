"""A gamepad, read from Linux's joystick device: events of 8 bytes (linux/joystick.h, `struct js_event`)."""

from __future__ import annotations

import os
import struct

from vla.errors import InputError
from vla.robots.teleoperators.teleoperator import STEP, TURN, WORDS, Jog, combined

EVENT = struct.Struct("=IhBB")  # time [ms], value, type, number
BUTTON, AXIS, INITIAL = 0x01, 0x02, 0x80
FULL, DEAD = 32767, 0.15
"""Value at full deflection of a stick, and the dead zone as a fraction of it."""
# The kernel's numbers of the buttons and sticks of an Xbox pad.
BUTTONS = {0: "close", 1: "open", 3: "next", 6: "discard", 7: "save", 8: "quit"}
LEFT_X, LEFT_Y, RIGHT_X, RIGHT_Y = 0, 1, 3, 4
HELP = """left stick: along the table     right stick: up and down, and sideways to turn the gripper
A, B: close, open the gripper     start: save     back: discard, and again     Y: next scene     guide: quit"""


class Gamepad:
    """The joystick device at `path`.

    Raises:
        InputError: if it cannot be read.
    """

    def __init__(self, path: str) -> None:
        self._path, self._rest = path, b""
        self._sticks: dict[int, float] = {}
        try:
            self._device = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
        except OSError as error:
            raise InputError(
                f"there is no gamepad at {path} ({error.strerror}): connect one, or use the keyboard"
            ) from None

    def read(self) -> Jog:
        """Reads the sticks and buttons. Raises InputError if the gamepad is disconnected."""
        pressed: list[Jog] = []
        for value, kind, number in self._events():
            if kind & AXIS:  # INITIAL events report the initial position
                share = max(-1.0, value / FULL)
                self._sticks[number] = share if abs(share) > DEAD else 0.0
            elif kind == BUTTON and value and number in BUTTONS:
                pressed.append(WORDS[BUTTONS[number]])
        # Stick values are negative forward and to the left.
        x, y, z, turn = (-self._sticks.get(axis, 0.0) for axis in (LEFT_Y, LEFT_X, RIGHT_Y, RIGHT_X))
        return combined([Jog((STEP * x, STEP * y, STEP * z), TURN * turn), *pressed])

    def pressed(self) -> bool:
        """Whether any button was pressed since the last call. Raises InputError if the gamepad is disconnected."""
        return any(kind == BUTTON and value for value, kind, _ in self._events())

    def _events(self) -> list[tuple[int, int, int]]:
        while True:
            try:
                new = os.read(self._device, 64 * EVENT.size)
            except BlockingIOError:
                break
            except OSError as error:
                raise InputError(f"the gamepad at {self._path} is gone ({error.strerror})") from None
            if not new:
                break
            self._rest += new
        length = len(self._rest) // EVENT.size * EVENT.size
        complete, self._rest = self._rest[:length], self._rest[length:]
        return [(value, kind, number) for _, value, kind, number in EVENT.iter_unpack(complete)]

    def close(self) -> None:
        """Closes the device."""
        os.close(self._device)
