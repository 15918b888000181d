"""What the cameras see, beside what they saw in the training data: for people to compare before anything moves."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from pathlib import Path

from vla.types import Observation

SIDE, MARGIN, HEAD = 320, 8, 18
"""Of the picture [pixels]: each image's longer side, what is around it, and the line above it."""


def cameras_beside_training(path: Path, seen: Observation, training: Mapping[str, str]) -> None:
    """Writes a picture to `path`: a column for each camera, its first image of the training data (`StartRegion.images`)
    above the present one."""
    from PIL import Image, ImageDraw

    names = list(seen.images)
    cell = SIDE + 2 * MARGIN
    sheet = Image.new("RGB", (cell * len(names), 2 * (cell + HEAD)), "white")
    draw = ImageDraw.Draw(sheet)
    for column, name in enumerate(names):
        known = training.get(name)
        pictures = [
            ("training data", None if known is None else Image.open(io.BytesIO(base64.b64decode(known)))),
            ("now", Image.fromarray(seen.images[name])),
        ]
        for row, (what, picture) in enumerate(pictures):
            x, y = column * cell + MARGIN, row * (cell + HEAD) + MARGIN
            draw.text((x, y), f"{name}: {what}" + (", unknown" if picture is None else ""), fill="black")
            if picture is not None:
                share = SIDE / max(picture.size)
                size = (max(1, round(picture.width * share)), max(1, round(picture.height * share)))
                sheet.paste(picture.resize(size), (x, y + HEAD))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
