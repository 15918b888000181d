"""What a detector found, and what would repair it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from vla.datasets.doctor.frames import CameraScan
from vla.datasets.doctor.recording import Recording

Steps = Mapping[int, tuple[tuple[int, int], ...]]
"""Ranges of steps, without their ends, by episode."""


@dataclass(frozen=True)
class Drop:
    """Leave the episodes of the finding out."""


@dataclass(frozen=True)
class Trim:
    """Cut idle beginnings and ends down to so many seconds [s]."""

    seconds: float


@dataclass(frozen=True)
class Cut:
    """Leave the steps of the finding out."""


@dataclass(frozen=True)
class ShiftActions:
    """Give each step the action of `steps` steps later."""

    steps: int


@dataclass(frozen=True)
class AddToAction:
    """Add an amount, in its unit, to an action component."""

    component: str
    amount: float


@dataclass(frozen=True)
class DropCamera:
    camera: str


@dataclass(frozen=True)
class FixImages:
    """`option` is "bgr" (exchange red and blue) or "upside_down" (turn by half a turn)."""

    option: str
    camera: str


@dataclass(frozen=True)
class Advice:
    """Words, where no command can repair it."""

    text: str


Remedy = Drop | Trim | Cut | ShiftActions | AddToAction | DropCamera | FixImages | Advice


@dataclass(frozen=True)
class Finding:
    """A fault, or a hint: what a person should look at, which may be as it should be.

    `episodes` are numbers in the store, `steps` where in them, if it is somewhere. `subject` is the component or camera
    that it is about, `values` the figures by which it was found.
    """

    check: str
    text: str
    episodes: tuple[int, ...]
    remedy: Remedy
    level: str = "fault"
    subject: str = ""
    steps: Steps = field(default_factory=dict)
    values: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Diagnosis:
    """What was found in a recording, faults first, and the figures of the cameras that were looked at."""

    data: Recording
    findings: tuple[Finding, ...]
    scans: tuple[CameraScan, ...]
