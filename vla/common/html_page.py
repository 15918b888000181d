"""Self-contained HTML pages: styles, images and videos are embedded."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vla.common.atomic import atomic_replace
from vla.common.plural import counted
from vla.errors import InputError

if TYPE_CHECKING:
    from jinja2 import Environment

NUMBER = re.compile(r"\s*|–|[-+−]?[\d.,]+(e[-+]?\d+)?([ \N{NO-BREAK SPACE}]?(%|ms|s|[kMG]?B))?( *(\[|–).*)?")
"""Content of a cell that is a number, perhaps with a unit and an interval, or empty."""
UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "B"))
MEDIA = {".mp4": "video/mp4", ".gif": "image/gif", ".png": "image/png", ".jpeg": "image/jpeg"}


def write_page(path: Path, title: str, template: str, **values: Any) -> Path:
    """Writes a page and returns its path.

    Args:
        path: The file, replaced if it exists.
        title: The title of the page.
        template: A file of `assets/pages` with the content.
        values: What the template shows; text is escaped.

    Raises:
        InputError: if the file cannot be written.
    """
    page = _environment().get_template("page.html").render(values, title=title, content=template)
    try:
        with atomic_replace(path) as partial:
            partial.write_text(page, encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from error
    return path


@cache
def _environment() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("vla", "assets/pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    texts = (counted, format_bytes, milliseconds, number, percent, percent_interval)
    for function in (*texts, file_uri, image_uri, numeric_columns):
        environment.filters[function.__name__] = function
    return environment


def numeric_columns(rows: Sequence[Sequence[str]]) -> list[bool]:
    """Which columns of a table hold only numbers."""
    return [all(NUMBER.fullmatch(cell) for cell in column) for column in zip(*rows, strict=True)]


def percent(value: float | None) -> str:
    """A share in percent, "" for None."""
    return "" if value is None else f"{100 * value:.0f}\N{NO-BREAK SPACE}%"


def percent_interval(interval: Sequence[float]) -> str:
    """An interval of shares in percent."""
    low, high = interval
    return f"{100 * low:.0f}–{percent(high)}"


def number(value: float | None, unit: str = "") -> str:
    """A number with three digits and its unit, "" for None."""
    return "" if value is None else f"{value:.3g}{unit}"


def milliseconds(seconds: float) -> str:
    """A time in milliseconds, with about three digits."""
    value = 1000 * seconds
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}\N{NO-BREAK SPACE}ms"


def format_bytes(size: int) -> str:
    """A number of bytes with a suitable unit."""
    scale, unit = next((scale, unit) for scale, unit in UNITS if size >= scale or scale == 1)
    return f"{size / scale:.3g}\N{NO-BREAK SPACE}{unit}"


def sample_evenly(indices: Sequence[int], count: int) -> list[int]:
    """`count` of the indices, evenly distributed, with the first and the last."""
    return [indices[i] for i in np.linspace(0, len(indices) - 1, count).round().astype(int)] if count else []


def file_uri(path: Path) -> str:
    """The content of a file with a suffix of `MEDIA`, as a data URI."""
    return data_uri(path.read_bytes(), path.suffix)


def image_uri(image: UInt8[np.ndarray, "h w 3"], suffix: str = ".png", max_size: int | None = None) -> str:
    """The image as a data URI, encoded by `suffix` (of `MEDIA`), reduced to at most `max_size` pixels per side."""
    picture, buffer = Image.fromarray(image), io.BytesIO()
    if max_size is not None:
        picture.thumbnail((max_size, max_size))
    picture.save(buffer, suffix[1:], quality=88)
    return data_uri(buffer.getvalue(), suffix)


def data_uri(content: bytes, suffix: str) -> str:
    """Content of the type of `suffix` (of `MEDIA`) as a data URI."""
    return f"data:{MEDIA[suffix]};base64,{base64.b64encode(content).decode()}"
