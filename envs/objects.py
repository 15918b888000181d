"""What can lie on the table: objects of every colour and shape, bowls and zones."""

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
}
"""Half extents [m] of each shape at scale 1: x, y, z, standing on the table. The brick's long side is x."""
SHAPES = tuple(SIZES)
SLOTS = 6
GOALS = 2
BOWL_RADIUS, BOWL_HEIGHT = 0.050, 0.028
ZONE_SIZE = (0.075, 0.045)
"""Half extents [m] of a push zone along x and y."""
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
    def name(self) -> str:
        return f"{self.color} {self.shape}"

    @property
    def half_extents(self) -> Float[np.ndarray, "3"]:
        # A mesh cannot be rescaled after compilation.
        return np.asarray(SIZES[self.shape]) * (1.0 if self.shape == "cone" else self.scale)


@dataclass(frozen=True)
class GoalSpec:
    """A bowl or a zone at `x`, `y` [m]; `side` is "left" or "right" as the robot sees it."""

    kind: str
    color: str
    side: str
    x: float
    y: float


def geom_size(shape: str, half: Float[np.ndarray, "3"]) -> tuple[float, float, float]:
    """MuJoCo's size of a shape from its half extents [m]."""
    if shape == "ball":
        return (float(half[0]), 0.0, 0.0)
    if shape == "cylinder":
        return (float(half[0]), float(half[2]), 0.0)
    return (float(half[0]), float(half[1]), float(half[2]))
