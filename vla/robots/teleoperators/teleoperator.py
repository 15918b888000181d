"""Teleoperation devices, read once per control step.

A keyboard, a gamepad and a script jog the fingertips in small steps; a leader arm gives absolute joint targets.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol, runtime_checkable

STEP, TURN = 0.01, 0.1
"""Largest motion of the fingertips [m] and rotation of the jaws [rad] per control step."""


class Event(Enum):
    """The operator's decision about the episode."""

    SAVE = "save"
    DISCARD = "discard"
    NEXT = "next"
    QUIT = "quit"


@dataclass(frozen=True)
class Jog:
    """The command of one control step, in the frame of the arm's base: x forward, y left, z up."""

    delta: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Translation of the fingertips [m]."""
    turn: float = 0.0
    """Rotation of the jaws about the fingers' axis [rad]; counterclockwise from above when the fingers point down."""
    close: bool | None = None
    """Whether the gripper closes or opens; None leaves it unchanged."""
    event: Event | None = None
    joints: tuple[float, ...] | None = None
    """Joint targets [rad]. If set, only `event` applies in addition."""

    @property
    def moves(self) -> bool:
        """Whether it moves the fingertips, the jaws or the gripper."""
        return any(self.delta) or self.turn != 0 or self.close is not None


@runtime_checkable
class Teleop(Protocol):
    """A teleoperation device."""

    def read(self) -> Jog:
        """The command since the last call; does not wait."""
        ...


WORDS = {
    "x+": Jog((STEP, 0.0, 0.0)),
    "x-": Jog((-STEP, 0.0, 0.0)),
    "y+": Jog((0.0, STEP, 0.0)),
    "y-": Jog((0.0, -STEP, 0.0)),
    "z+": Jog((0.0, 0.0, STEP)),
    "z-": Jog((0.0, 0.0, -STEP)),
    "turn+": Jog(turn=TURN),
    "turn-": Jog(turn=-TURN),
    "close": Jog(close=True),
    "open": Jog(close=False),
    "wait": Jog(),
    **{event.value: Jog(event=event) for event in Event},
}
"""The commands of scripts, keys and buttons by name."""


def combined(jogs: Iterable[Jog]) -> Jog:
    """Combines several jogs into one: movements are added, and for other fields the last value counts."""
    x = y = z = turn = 0.0
    close: bool | None = None
    event: Event | None = None
    for jog in jogs:
        x, y, z, turn = x + jog.delta[0], y + jog.delta[1], z + jog.delta[2], turn + jog.turn
        close = close if jog.close is None else jog.close
        event = jog.event or event
    return Jog((x, y, z), turn, close, event)
