"""The start region of a policy's demonstrations."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from vla.errors import InputError

QUANTILES = (0.05, 0.5, 0.95)
SIDE, QUALITY = 192, 85
"""Size [pixels] and JPEG quality of the thumbnails."""


@dataclass(frozen=True)
class StartRegion:
    """The distribution of the first states of demonstrations.

    Attributes:
        low: 5 % quantile of each state component, in its unit.
        median: Median of each component.
        high: 95 % quantile of each component.
        images: First image of one demonstration from each camera, a small JPEG in base64, for visual comparison.
    """

    low: tuple[float, ...]
    median: tuple[float, ...]
    high: tuple[float, ...]
    images: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not len(self.low) == len(self.median) == len(self.high):
            raise InputError("a start region has three values for each component of the state")

    @classmethod
    def of(cls, states: Sequence[Float[np.ndarray, "s"]], images: Mapping[str, str]) -> StartRegion:
        """The region of these first states, at least one."""
        low, median, high = (tuple(map(float, row)) for row in np.quantile(np.stack(states), QUANTILES, axis=0))
        return cls(low, median, high, images)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> StartRegion:
        """The inverse of `to_dict`."""
        low, median, high = (tuple(map(float, values[name])) for name in ("low", "median", "high"))
        return cls(low, median, high, dict(values.get("images", {})))

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)

    def converted(self, convert: Callable[[Float[np.ndarray, "s"]], Float[np.ndarray, "s"]]) -> StartRegion:
        """The region in other units, by an increasing function of each component."""
        low, median, high = (tuple(convert(np.array(row)).tolist()) for row in (self.low, self.median, self.high))
        return StartRegion(low, median, high, self.images)

    def nearest(self, state: Float[np.ndarray, "s"]) -> Float[np.ndarray, "s"]:
        """The state of the region that is nearest to `state`."""
        return np.clip(state, self.low, self.high)


def thumbnail(image: UInt8[np.ndarray, "_h _w 3"]) -> str:
    """A small JPEG of an RGB image, in base64."""
    from PIL import Image

    small, file = Image.fromarray(image), io.BytesIO()
    small.thumbnail((SIDE, SIDE))
    small.save(file, "JPEG", quality=QUALITY)
    return base64.b64encode(file.getvalue()).decode()
