"""The teleoperation devices by name."""

from __future__ import annotations

from contextlib import ExitStack

from vla.errors import InputError, unknown
from vla.robots.teleoperators.gamepad import Gamepad
from vla.robots.teleoperators.keyboard import Keyboard
from vla.robots.teleoperators.script import Script
from vla.robots.teleoperators.teleoperator import Teleop

DEVICES = ("keyboard", "gamepad", "script")


def open_device(name: str, joystick: str, script: str | None, stack: ExitStack) -> Teleop:
    """Opens one of DEVICES; `stack` closes it.

    Raises:
        InputError: for an unknown name, and for a device that is not available.
    """
    if name == "keyboard":
        return Keyboard()
    if name == "gamepad":
        pad = Gamepad(joystick)
        stack.callback(pad.close)
        return pad
    if name != "script":
        raise unknown("device", name, DEVICES)
    if script is None:
        raise InputError("a script needs script=FILE, a text file of commands (vla play --help)")
    return Script.from_file(script)
