"""What is truly in a rendered scene: the source of questions, answers and points."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

POINT_SCALE = 100
"""Points in an image are whole numbers below this: percent of its width and height."""


@dataclass(frozen=True)
class SceneObject:
    """One object. `position` is (x, y, z) [m] in the robot's base frame: x forward, y left, z up.

    `centers` maps each camera to the object's centre in that image as fractions (x right, y down) of
    its width and height, and has no entry for a camera that does not see enough of the object.
    """

    color: str
    shape: str
    position: tuple[float, float, float]
    centers: Mapping[str, tuple[float, float]]

    @property
    def name(self) -> str:
        return f"{self.color} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """The objects on the table, and where the gripper's fingertips show in each camera that sees them.

    `ambiguous` names, for a camera, the objects whose visibility there is neither clear nor ruled out;
    no question about its view may depend on them.
    """

    objects: tuple[SceneObject, ...]
    gripper: Mapping[str, tuple[float, float]]
    ambiguous: Mapping[str, frozenset[str]] = field(default_factory=dict)
