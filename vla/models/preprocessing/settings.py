"""The image preprocessing that is saved with a checkpoint: framing and markup."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, ClassVar, Protocol, runtime_checkable

from vla.errors import InputError
from vla.models.preprocessing.frames import Crop, FloorPad, Pad, Square, Stretch
from vla.models.preprocessing.markup import Markup, Part
from vla.models.preprocessing.molmo_crops import Crops
from vla.models.preprocessing.native import Native, Patches
from vla.models.preprocessing.on_device import OnDevice
from vla.models.preprocessing.tiles import Canvas, Split, Tiles, Whole
from vla.models.preprocessing.view import View


@runtime_checkable
class Framing(Protocol):
    """How an image is cut into frames: a frozen dataclass whose fields are its settings."""

    kind: ClassVar[str]

    def view(self, height: int, width: int) -> View:
        """The frames of an image of this height and width [pixels]."""
        ...

    def __hash__(self) -> int: ...


ALL = (Pad, FloorPad, Square, Stretch, Crop, Native, Patches, Tiles, Split, Whole, Canvas, Crops, OnDevice)
KINDS: dict[str, Any] = {framing.kind: framing for framing in ALL}


@dataclass(frozen=True)
class Preprocessing:
    """How an image is cut into frames, and the tokens that represent it."""

    framing: Framing
    markup: Markup

    def view(self, height: int, width: int) -> View:
        """The frames of an image of this height and width [pixels]."""
        return _view(self.framing, height, width)

    def parts(self, view: View, number: int) -> tuple[Part, ...]:
        """`Markup.parts` of an image's view."""
        return _parts(self.markup, view, number)

    def among(self, images: int) -> Preprocessing:
        """Of one of a row's so many images."""
        return _among(self, images)

    def to_dict(self) -> dict[str, Any]:
        """JSON values: the kind and settings of the framing, and the markup."""
        framing: Any = self.framing
        return {"kind": framing.kind, **asdict(framing), "markup": asdict(self.markup)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocessing:
        """The inverse of `to_dict`. Raises InputError for an unknown kind or unknown settings."""
        rest = dict(values)
        kind, markup = rest.pop("kind", None), rest.pop("markup", {})
        try:
            settings = {name: tuple(value) if isinstance(value, list) else value for name, value in rest.items()}
            return cls(KINDS[kind](**settings), Markup(**markup))
        except (KeyError, TypeError) as error:
            raise InputError(f"{kind!r} with {rest} is not an image preprocessing: {error}") from error


# The images of a camera or a benchmark have few different shapes.
@lru_cache(maxsize=4096)
def _view(framing: Framing, height: int, width: int) -> View:
    return framing.view(height, width)


@lru_cache(maxsize=4096)
def _among(preprocessing: Preprocessing, images: int) -> Preprocessing:
    if images < 2:
        return preprocessing
    framing = preprocessing.framing.among(images) if isinstance(preprocessing.framing, Tiles) else preprocessing.framing
    return Preprocessing(framing, preprocessing.markup.among(images))


@lru_cache(maxsize=4096)
def _parts(markup: Markup, view: View, number: int) -> tuple[Part, ...]:
    return tuple(markup.parts(view, number))
