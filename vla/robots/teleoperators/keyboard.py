"""The keyboard, read through MuJoCo's viewer, which calls back for each press and repeats a key that is held."""

from __future__ import annotations

from queue import Empty, SimpleQueue

from vla.robots.teleoperators.teleoperator import WORDS, Jog, combined

# GLFW's key codes that do not conflict with important shortcuts of the viewer, as most letters do.
KEYS = {
    265: "x+",
    264: "x-",
    263: "y+",
    262: "y-",
    266: "z+",
    267: "z-",
    ord("6"): "close",
    ord("7"): "open",
    ord("8"): "turn+",
    ord("9"): "turn-",
    257: "save",
    259: "discard",
    268: "next",
    269: "quit",
}
HELP = """up, down: away from the robot, towards it     left, right: to the robot's left, right
page up, page down: higher, lower             6, 7: close, open the gripper     8, 9: turn it
enter: save     backspace: discard, and again     home: next scene     end: quit"""


class Keyboard:
    """Collects key presses from the viewer's thread until they are read. A key counts once per step."""

    def __init__(self) -> None:
        self._pressed: SimpleQueue[str] = SimpleQueue()

    def press(self, code: int) -> None:
        """Adds a key press by GLFW's code; unassigned keys are ignored."""
        if code in KEYS:
            self._pressed.put(KEYS[code])

    def read(self) -> Jog:
        """See `Teleop`."""
        words: dict[str, None] = {}
        while True:
            try:
                words[self._pressed.get_nowait()] = None
            except Empty:
                return combined(WORDS[word] for word in words)
