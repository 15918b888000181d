"""The options of image augmentation: what training varies, and how far."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from vla.errors import InputError

WRIST = "wrist"
"""Cameras with this in their name keep their geometry by default, as in openpi: they move with the arm."""

DEFAULTS: Mapping[str, float] = {"brightness": 0.1, "contrast": 0.1, "saturation": 0.1, "crop": 0.05, "rotation": 5.0}
"""The geometry is openpi's."""


@dataclass(frozen=True)
class Augmentation:
    """How far images are varied in training; 0 leaves a quantity as it is.

    Attributes:
        brightness: Added to normalised pixels, up to this.
        contrast: Relative change about the image's mean, up to this.
        saturation: Relative change about grey, up to this.
        crop: Share of height and width that is cut off, at random sides; the rest is scaled to the full size.
        shift: Translation, up to this fraction of width and height.
        scale: Relative change of size about the centre, up to this.
        rotation: About the centre, up to this angle [degrees].
        perspective: How much larger one side becomes than the opposite one, as a fraction, up to this.
        noise: Standard deviation of Gaussian pixel noise on normalised pixels, up to this.
        blur: Standard deviation of a Gaussian blur [pixels of the model's input], up to this.
        cutout: Sides of one rectangle of the image's mean colour, up to this fraction of width and height.
        cameras: Whose geometry is varied; None: all but those with "wrist" in their name.

    Raises:
        InputError: a value is not in its range.
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
        """From an option: a mapping of the attributes, or a number alone, which is brightness, contrast and saturation.

        Raises InputError for a name that is no option, and a value that is not of its kind.
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
        """Whether the geometry of any image is varied."""
        return any(getattr(self, name) > 0 for name in GEOMETRY)

    @property
    def photometric_only(self) -> bool:
        """Whether nothing but brightness, contrast and saturation is varied."""
        return not any(getattr(self, name) > 0 for name in AMOUNTS[3:])

    @property
    def enabled(self) -> bool:
        return any(getattr(self, name) > 0 for name in AMOUNTS)

    def moves(self, camera: str) -> bool:
        """Whether the geometry of this camera's images is varied."""
        chosen = WRIST not in camera if self.cameras is None else camera in self.cameras
        return chosen and self.geometric


AMOUNTS = tuple(f.name for f in fields(Augmentation) if f.name != "cameras")
GEOMETRY = ("crop", "shift", "scale", "rotation", "perspective")
BELOW_ONE = ("crop", "scale", "perspective")
"""At 1 these have no image left."""
