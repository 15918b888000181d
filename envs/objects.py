"""Things on the table: objects of all colours and shapes, bowls and zones, buttons and drawers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

COLORS = {
    "red": (0.86, 0.10, 0.10),
    "green": (0.10, 0.62, 0.16),
    "blue": (0.10, 0.25, 0.88),
    "yellow": (0.98, 0.84, 0.05),
    "purple": (0.55, 0.12, 0.72),
    "orange": (1.00, 0.47, 0.02),
}
SIZES: dict[str, tuple[float, float, float]] = {
    "cube": (0.0165, 0.0165, 0.0165),
    "ball": (0.019, 0.019, 0.019),
    "cylinder": (0.0165, 0.0165, 0.021),
    "brick": (0.030, 0.014, 0.012),
    "cone": (0.021, 0.021, 0.023),
    "bar": (0.012, 0.11, 0.017),
    "egg": (0.024, 0.016, 0.016),
    "disc": (0.022, 0.022, 0.008),
}
"""Half extents (x, y, z) [m] of each shape at scale 1, standing on the table. The brick's long side is x."""
SHAPES = ("cube", "ball", "cylinder", "brick", "cone")
"""The shapes of tasks and questions; a bar needs two arms, the other shapes are distractors."""
ODD_SHAPES = ("egg", "disc")
ODD_COLORS = {"white": (0.95, 0.95, 0.95), "black": (0.08, 0.08, 0.08), "pink": (0.98, 0.55, 0.70)}
"""Shapes and colours of distractors, which no instruction names."""
HELD_OUT = {
    "cube": "purple",
    "ball": "orange",
    "cylinder": "yellow",
    "brick": "blue",
    "cone": "red",
    "bar": "green",
    "button": "purple",
    "drawer": "orange",
}
"""The held-out colour of each kind, for evaluation on unseen combinations."""
SLOTS = 6
ODD_SLOTS = 3
GOALS = 2
BOWL_RADIUS, BOWL_HEIGHT = 0.050, 0.028
ZONE_SIZE = (0.075, 0.045)
"""Half extents of a push zone along x and y [m]."""
OBJECT_MASS = 0.03

MAX_SCALE = 1.1


@dataclass(frozen=True)
class ObjectSpec:
    """An object to put on the table: `x`, `y` [m] and `yaw` [rad] in the robot's base frame."""

    color: str
    shape: str
    x: float
    y: float
    yaw: float = 0.0
    scale: float = 1.0

    @property
    def kind(self) -> str:
        """The kind of thing: its shape."""
        return self.shape

    @property
    def name(self) -> str:
        """The name in instructions, such as "red cube"."""
        return f"{self.color} {self.shape}"

    @property
    def half_extents(self) -> Float[np.ndarray, "3"]:
        """Half the extents along the object's axes [m]."""
        # A mesh cannot be rescaled after compilation.
        return np.asarray(SIZES[self.shape]) * (1.0 if self.shape == "cone" else self.scale)


@dataclass(frozen=True)
class GoalSpec:
    """A bowl or a zone at `x`, `y` [m]; `side` is "left" or "right" from the robot's perspective."""

    kind: str
    color: str
    side: str
    x: float
    y: float


@dataclass(frozen=True)
class FixtureSpec:
    """A button, or a drawer with its front at `x`, `y` [m]; `opening` is the initial opening of the drawer [m]."""

    kind: str
    color: str
    x: float
    y: float
    opening: float = 0.0

    @property
    def name(self) -> str:
        """The name in instructions, such as "red button"."""
        return f"{self.color} {self.kind}"


@dataclass(frozen=True)
class Layout:
    """The things on the table and their positions at the start of an episode."""

    objects: tuple[ObjectSpec, ...] = ()
    goals: tuple[GoalSpec, ...] = ()
    fixtures: tuple[FixtureSpec, ...] = ()

    @property
    def things(self) -> tuple[ObjectSpec | FixtureSpec, ...]:
        """The objects, then the fixtures."""
        return (*self.objects, *self.fixtures)


@dataclass(frozen=True)
class Furniture:
    """The contents of a task's compiled model: only what the task needs, for fast rendering."""

    shapes: tuple[str, ...] = SHAPES
    goals: int = GOALS
    fixture: str = ""
    """The kind of fixtures: button, drawer, or empty for none."""
    fixtures: int = 0
    arms: int = 1
    distractors: bool = False
    slots: int = SLOTS
    """The maximum number of objects."""


def geom_size(shape: str, half: Float[np.ndarray, "3"]) -> tuple[float, float, float]:
    """The MuJoCo geom size of a shape with these half extents [m]."""
    if shape == "ball":
        return (float(half[0]), 0.0, 0.0)
    if shape in ("cylinder", "disc"):
        return (float(half[0]), float(half[2]), 0.0)
    return (float(half[0]), float(half[1]), float(half[2]))
