"""Self-contained HTML pages: styles, images and videos are embedded."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vla.common.atomic import atomic_replace
from vla.errors import InputError

NUMBER = re.compile(r"\s*|–|[-+−]?[\d.,]+(e[-+]?\d+)?([ \N{NO-BREAK SPACE}]?(%|ms|s))?( *(\[|–|&).*)?")
"""Content of a cell that is a number, perhaps with a unit and an interval, or empty."""
UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "B"))
MEDIA = {".mp4": "video/mp4", ".gif": "image/gif", ".png": "image/png", ".jpeg": "image/jpeg"}


def write_page(path: Path, title: str, sections: Sequence[str]) -> Path:
    """Writes a page with the given HTML sections, and returns its path. Raises InputError if it cannot be written."""
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
    """A section with a heading; both arguments are HTML."""
    return f"<section>\n<h2>{title}</h2>\n{body}\n</section>"


def tile(name: str, value: str, below: str, beside: str = "") -> str:
    """A tile with a headline number, its name above and a line below; all arguments are HTML."""
    return f'<div class="tile card"><span>{name}</span><b>{value}</b><span>{below}</span>{beside}</div>'


def html_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; columns of numbers are aligned to the right.

    Args:
        head: The titles of the columns, as HTML.
        rows: The cells of each row, as HTML.
    """
    cells = [list(row) for row in rows]
    numeric = [all(NUMBER.fullmatch(row[i]) for row in cells) for i in range(len(head))]
    looks = [' class="number"' if is_number and cells else "" for is_number in numeric]

    def line(tag: str, row: Sequence[str]) -> str:
        return "<tr>" + "".join(f"<{tag}{look}>{cell}</{tag}>" for look, cell in zip(looks, row, strict=True)) + "</tr>"

    body = "".join(line("td", row) for row in cells)
    return f'<div class="table"><table><thead>{line("th", head)}</thead><tbody>{body}</tbody></table></div>'


def percent(value: float | None) -> str:
    """A share in percent, "" for None."""
    return "" if value is None else f"{100 * value:.0f}\N{NO-BREAK SPACE}%"


def format_bytes(size: int) -> str:
    """A number of bytes with a suitable unit."""
    scale, unit = next((scale, unit) for scale, unit in UNITS if size >= scale or scale == 1)
    return f"{size / scale:.3g}\N{NO-BREAK SPACE}{unit}"


def bar(name: str, share: float, text: str, style: str = "") -> str:
    """A horizontal bar of relative length `share`; `name` is plain text, `text` is HTML, `style` a CSS class."""
    width = f"{100 * share:.1f}%"
    content = f'<span>{escape(name)}</span><i><u style="width:{width}"></u></i><b>{text}</b>'
    return f'<div class="bar {style}">{content}</div>'


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
