"""The findings of detectors, and their remedies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from vla.datasets.doctor.frames import CameraScan
from vla.datasets.doctor.recording import Recording

Steps = Mapping[int, tuple[tuple[int, int], ...]]
"""Ranges of steps, start (inclusive) and stop (exclusive), by episode."""


@dataclass(frozen=True)
class Drop:
    """Remove the episodes of the finding."""


@dataclass(frozen=True)
class Trim:
    """Shorten idle beginnings and ends to `seconds` [s]."""

    seconds: float


@dataclass(frozen=True)
class Cut:
    """Remove the steps of the finding."""


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
    """Remove a camera."""

    camera: str


@dataclass(frozen=True)
class FixImages:
    """Apply `option` to the images of a camera: "bgr" (swap red and blue) or "upside_down" (rotate by 180 degrees)."""

    option: str
    camera: str


@dataclass(frozen=True)
class Advice:
    """A text, if no command can repair the fault."""

    text: str


Remedy = Drop | Trim | Cut | ShiftActions | AddToAction | DropCamera | FixImages | Advice


@dataclass(frozen=True)
class Finding:
    """A fault, or a hint that a person should check and that may be correct data.

    Attributes:
        check: Name of the check.
        text: Description.
        episodes: Indices of the affected episodes in the store.
        remedy: How to repair it.
        level: "fault" or "hint".
        subject: The affected component or camera.
        steps: Affected steps, if only some are.
        values: Measured values.
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
    """The findings in a recording, faults first, and the statistics of the checked cameras."""

    data: Recording
    findings: tuple[Finding, ...]
    scans: tuple[CameraScan, ...]
