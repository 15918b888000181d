"""The ground truth of a rendered scene, from which questions, answers and points are generated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

POINT_SCALE = 100
"""Image points are integers below this value: percent of width and height."""


@dataclass(frozen=True)
class SceneObject:
    """One object of a scene.

    Attributes:
        color: Name of the colour.
        shape: Name of the shape.
        position: (x, y, z) [m] in the robot's base frame: x forward, y left, z up.
        centers: The object's centre in each camera image, as fractions (x right, y down) of width and height; without
            the cameras in which too little of the object is visible.
    """

    color: str
    shape: str
    position: tuple[float, float, float]
    centers: Mapping[str, tuple[float, float]]

    @property
    def name(self) -> str:
        """Colour and shape."""
        return f"{self.color} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """The objects on the table, and the gripper.

    Attributes:
        objects: The objects.
        gripper: Image position of the fingertips, in each camera in which they are visible.
        ambiguous: For each camera, the objects that are only partly visible; no question about this view may depend on
            them.
    """

    objects: tuple[SceneObject, ...]
    gripper: Mapping[str, tuple[float, float]]
    ambiguous: Mapping[str, frozenset[str]] = field(default_factory=dict)
