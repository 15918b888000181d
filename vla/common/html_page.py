"""A self-contained HTML page for a person to look at: nothing in it comes from elsewhere."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vla.common.atomic import atomic_replace
from vla.errors import InputError

UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "B"))
MEDIA = {".mp4": "video/mp4", ".gif": "image/gif", ".png": "image/png", ".jpeg": "image/jpeg"}


def write_page(path: Path, title: str, sections: Sequence[str]) -> Path:
    """Writes the sections, which are HTML, to the file `path`, and returns it. Raises InputError when it cannot."""
    style = (files("vla") / "assets" / "report.css").read_text(encoding="utf-8")
    page = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(sections)
        + "\n</main>\n</body>\n</html>\n"
    )
    try:
        with atomic_replace(path) as partial:
            partial.write_text(page, encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error
    return path


def section(title: str, body: str) -> str:
    return f"<section>\n<h2>{title}</h2>\n{body}\n</section>"


def tile(name: str, value: str, below: str, beside: str = "") -> str:
    """A number to see first, with its name above it and a line below."""
    return f'<div class="tile card"><span>{name}</span><b>{value}</b><span>{below}</span>{beside}</div>'


def percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.0f}\N{NO-BREAK SPACE}%"


def amount(size: int) -> str:
    """So many bytes, in a unit that fits."""
    scale, unit = next((scale, unit) for scale, unit in UNITS if size >= scale or scale == 1)
    return f"{size / scale:.3g}\N{NO-BREAK SPACE}{unit}"


def bar(name: str, share: float, text: str, look: str = "") -> str:
    """A bar as long as `share` of the whole; `name` is text, the others are HTML."""
    width = f"{100 * share:.1f}%"
    return f'<div class="bar {look}"><span>{escape(name)}</span><i><u style="width:{width}"></u></i><b>{text}</b></div>'


def spread(indices: Sequence[int], count: int) -> list[int]:
    """So many of the indices, from all over them."""
    return [indices[at] for at in np.linspace(0, len(indices) - 1, count).round().astype(int)] if count else []


def file_uri(path: Path) -> str:
    return data_uri(path.read_bytes(), path.suffix)


def image_uri(image: UInt8[np.ndarray, "h w 3"], suffix: str = ".png", at_most: int | None = None) -> str:
    """The image as a file of a kind in `MEDIA` inside the page, made as small as `at_most` [px] where it is larger."""
    picture, buffer = Image.fromarray(image), io.BytesIO()
    if at_most is not None:
        picture.thumbnail((at_most, at_most))
    picture.save(buffer, suffix[1:], quality=88)
    return data_uri(buffer.getvalue(), suffix)


def data_uri(content: bytes, suffix: str) -> str:
    return f"data:{MEDIA[suffix]};base64,{base64.b64encode(content).decode()}"
