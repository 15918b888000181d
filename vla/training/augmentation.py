"""Options of image augmentation in training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from vla.errors import InputError

WRIST = "wrist"
"""Cameras with this in their name are not augmented geometrically by default, as in openpi: they move with the arm."""

DEFAULTS: Mapping[str, float] = {"brightness": 0.1, "contrast": 0.1, "saturation": 0.1, "crop": 0.05, "rotation": 5.0}
"""The geometry is openpi's."""


@dataclass(frozen=True)
class Augmentation:
    """Augmentation strengths. Each is the maximum of a random change; 0 disables it.

    Attributes:
        brightness: Offset added to normalised pixels.
        contrast: Relative change about the image's mean.
        saturation: Relative change about grey.
        crop: Fraction of height and width that is cropped at random sides; the rest is scaled to full size.
        shift: Translation, as a fraction of width and height.
        scale: Relative change of size about the centre.
        rotation: Angle about the centre [degrees].
        perspective: Ratio by which one side grows relative to the opposite side, minus 1.
        noise: Standard deviation of Gaussian noise on normalised pixels.
        blur: Standard deviation of a Gaussian blur [pixels of the model's input].
        cutout: Sides of a rectangle in the image's mean colour, as a fraction of width and height.
        cameras: Cameras that are augmented geometrically; None: all without "wrist" in their name.

    Raises:
        InputError: a value is out of range.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    crop: float = 0.0
    shift: float = 0.0
    scale: float = 0.0
    rotation: float = 0.0
    perspective: float = 0.0
    noise: float = 0.0
    blur: float = 0.0
    cutout: float = 0.0
    cameras: Sequence[str] | None = None

    def __post_init__(self) -> None:
        limits = {"rotation": 180.0, "blur": math.inf, "noise": math.inf, "brightness": math.inf}
        for name in AMOUNTS:
            value, limit = getattr(self, name), limits.get(name, 1.0)
            if not 0 <= value < math.inf:
                raise InputError(f"plan.augment.{name} must be a number of 0 or more, not {value}")
            if value > limit or (value == limit and name in BELOW_ONE):
                raise InputError(f"plan.augment.{name} must be below {limit:g}, not {value}")

    @classmethod
    def of(cls, value: float | Mapping[str, Any] | Augmentation) -> Augmentation:
        """Builds the options from a mapping, or from one number for brightness, contrast and saturation.

        Raises:
            InputError: an option is unknown or has a value of the wrong type.
        """
        if isinstance(value, Augmentation):
            return value
        if not isinstance(value, Mapping):
            return cls(brightness=value, contrast=value, saturation=value)
        names = [f.name for f in fields(cls)]
        if unknown := sorted(set(value) - set(names)):
            raise InputError(f"plan.augment has no {', '.join(unknown)}; it has {', '.join(names)}")
        for name in AMOUNTS:
            if isinstance(amount := value.get(name, 0.0), bool) or not isinstance(amount, int | float):
                raise InputError(f"plan.augment.{name} must be a number of 0 or more, not {amount!r}")
        if isinstance(cameras := value.get("cameras"), str):
            raise InputError(f"plan.augment.cameras must be a list of names: [{cameras}]")
        return cls(**value)

    @property
    def geometric(self) -> bool:
        """Whether any geometric augmentation is enabled."""
        return any(getattr(self, name) > 0 for name in GEOMETRY)

    @property
    def photometric_only(self) -> bool:
        """Whether only brightness, contrast and saturation may be enabled."""
        return not any(getattr(self, name) > 0 for name in AMOUNTS[3:])

    @property
    def enabled(self) -> bool:
        return any(getattr(self, name) > 0 for name in AMOUNTS)

    def moves(self, camera: str) -> bool:
        """Whether images of this camera are augmented geometrically."""
        selected = WRIST not in camera if self.cameras is None else camera in self.cameras
        return selected and self.geometric


AMOUNTS = tuple(f.name for f in fields(Augmentation) if f.name != "cameras")
GEOMETRY = ("crop", "shift", "scale", "rotation", "perspective")
BELOW_ONE = ("crop", "scale", "perspective")
"""A value of 1 would leave no image."""
