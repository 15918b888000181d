"""A picture of the current camera images beside those of the training data, to compare before the arm moves."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from pathlib import Path

from vla.types import Observation

SIDE, MARGIN, HEAD = 320, 8, 18
"""Layout of the picture [pixels]: longer side of an image, margin around it, height of its title."""


def cameras_beside_training(path: Path, observation: Observation, training: Mapping[str, str]) -> None:
    """Writes a picture with a column for each camera: the training image above the current image.

    Args:
        path: The image file to write.
        observation: The current observation.
        training: First image of the training data by camera (`StartRegion.images`), base64.
    """
    from PIL import Image, ImageDraw

    names = list(observation.images)
    cell = SIDE + 2 * MARGIN
    sheet = Image.new("RGB", (cell * len(names), 2 * (cell + HEAD)), "white")
    draw = ImageDraw.Draw(sheet)
    for column, name in enumerate(names):
        encoded = training.get(name)
        pictures = [
            ("training data", None if encoded is None else Image.open(io.BytesIO(base64.b64decode(encoded)))),
            ("now", Image.fromarray(observation.images[name])),
        ]
        for row, (title, picture) in enumerate(pictures):
            x, y = column * cell + MARGIN, row * (cell + HEAD) + MARGIN
            draw.text((x, y), f"{name}: {title}" + (", unknown" if picture is None else ""), fill="black")
            if picture is not None:
                share = SIDE / max(picture.size)
                size = (max(1, round(picture.width * share)), max(1, round(picture.height * share)))
                sheet.paste(picture.resize(size), (x, y + HEAD))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
