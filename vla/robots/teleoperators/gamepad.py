"""A gamepad, through Linux's joystick device: events of 8 bytes (linux/joystick.h, `struct js_event`)."""

from __future__ import annotations

import os
import struct

from vla.errors import InputError
from vla.robots.teleoperators.teleoperator import STEP, TURN, WORDS, Jog, together

EVENT = struct.Struct("=IhBB")  # time [ms], value, type, number
BUTTON, AXIS, INITIAL = 0x01, 0x02, 0x80
FULL, DEAD = 32767, 0.15
"""What a stick pushed all the way gives, and the share of it that counts as let go."""
# As the kernel numbers the buttons and sticks of an Xbox pad.
BUTTONS = {0: "close", 1: "open", 3: "next", 6: "discard", 7: "save", 8: "quit"}
LEFT_X, LEFT_Y, RIGHT_X, RIGHT_Y = 0, 1, 3, 4
HELP = """left stick: along the table     right stick: up and down, and sideways to turn the gripper
A, B: close, open the gripper     start: save     back: discard, and again     Y: next scene     guide: quit"""


class Gamepad:
    """The joystick device, or what stands for it, at `path`. Raises InputError when it cannot be read."""

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
        """Raises InputError when the gamepad is gone."""
        pressed: list[Jog] = []
        for value, kind, number in self._events():
            if kind & AXIS:  # with INITIAL, where the stick stands already
                share = max(-1.0, value / FULL)
                self._sticks[number] = share if abs(share) > DEAD else 0.0
            elif kind == BUTTON and value and number in BUTTONS:
                pressed.append(WORDS[BUTTONS[number]])
        # A stick is negative ahead and to the left.
        x, y, z, turn = (-self._sticks.get(axis, 0.0) for axis in (LEFT_Y, LEFT_X, RIGHT_Y, RIGHT_X))
        return together([Jog((STEP * x, STEP * y, STEP * z), TURN * turn), *pressed])

    def pressed(self) -> bool:
        """Whether any button was pressed since the last call. Raises InputError when the gamepad is gone."""
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
        whole = len(self._rest) // EVENT.size * EVENT.size
        taken, self._rest = self._rest[:whole], self._rest[whole:]
        return [(value, kind, number) for _, value, kind, number in EVENT.iter_unpack(taken)]

    def close(self) -> None:
        os.close(self._device)
