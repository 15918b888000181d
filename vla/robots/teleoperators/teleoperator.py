"""What teleoperates an arm by hand: a device that is read once a control step.

A keyboard, a gamepad and a script jog the fingertips by small steps; an arm that leads another gives absolute joint
targets.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol, runtime_checkable

STEP, TURN = 0.01, 0.1
"""How far the fingertips move [m] and the jaws turn [rad] in one control step, at most."""


class Event(Enum):
    """What the operator decides about the episode."""

    SAVE = "save"
    DISCARD = "discard"
    NEXT = "next"
    QUIT = "quit"


@dataclass(frozen=True)
class Jog:
    """One control step by hand: x forward, y left, z up, in the frame of the arm's base."""

    delta: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """How far the fingertips move [m]."""
    turn: float = 0.0
    """How far the jaws turn [rad] about the fingers' axis; counterclockwise from above while these point down."""
    close: bool | None = None
    """Whether the gripper closes or opens; None leaves it."""
    event: Event | None = None
    joints: tuple[float, ...] | None = None
    """Where the joints are to be [rad]: then nothing but `event` counts beside it."""

    @property
    def moves(self) -> bool:
        return any(self.delta) or self.turn != 0 or self.close is not None


@runtime_checkable
class Teleop(Protocol):
    """A device in the operator's hands."""

    def read(self) -> Jog:
        """What was asked for since the last call; returns at once."""
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
"""The commands by name: those of a script, and what keys and buttons stand for."""


def together(jogs: Iterable[Jog]) -> Jog:
    """All of them in one step: movements add up, of the rest the last one counts."""
    x = y = z = turn = 0.0
    close: bool | None = None
    event: Event | None = None
    for jog in jogs:
        x, y, z, turn = x + jog.delta[0], y + jog.delta[1], z + jog.delta[2], turn + jog.turn
        close = close if jog.close is None else jog.close
        event = jog.event or event
    return Jog((x, y, z), turn, close, event)
