"""The tokens that represent an image in the text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from vla.models.preprocessing.view import View

Part = str | int
"""A text, or a count of image tokens."""


@dataclass(frozen=True)
class Markup:
    """An image is `begin`, its image tokens, and `end`.

    `{number}` in `begin` is the image's number among those of the row. `several` precedes each of several images of a
    row.

    Each frame has `tokens` image tokens, or with `shared` all frames of an image together. With `cell` there is one
    token for each cell of `cell` x `cell` pixels of the first frame, and `between` separates the rows. The tokens of
    the common grid of further frames, which share `overlap` cells at each side with their neighbours, follow in the
    same form (Molmo). With `split` each frame follows its row and column (Idefics3). With `joined` the `end` of an
    image is the `begin` of the next one (Idefics).
    """

    begin: str = ""
    between: str = ""
    end: str = ""
    tokens: int = 0
    cell: int = 0
    overlap: int = 0
    shared: bool = False
    split: bool = False
    joined: bool = False
    several: str = ""

    def among(self, images: int) -> Markup:
        """As of one of a row's so many images."""
        return replace(self, begin=self.several + self.begin) if self.several and images > 1 else self

    def parts(self, view: View, number: int = 1) -> Iterator[Part]:
        """Texts and counts of image tokens, in order; `number` is the index of the image in its row, from 1."""
        if self.split:
            yield from self._split(view)
            return
        begin = "" if self.joined and number > 1 else self.begin.replace("{number}", str(number))
        if self.cell:
            rows, columns = (side // self.cell for side in view.pieces[0].frame)
            yield from self._grid(begin, rows, columns)
            if self.overlap and len(view.pieces) > 1:
                shared = 2 * self.overlap
                yield from self._grid(begin, *(n * (rows - shared) + shared for n in view.grid))
        else:
            yield begin
            yield self.tokens * (1 if self.shared else len(view.pieces))
            yield self.end

    def _grid(self, begin: str, rows: int, columns: int) -> Iterator[Part]:
        for row in range(rows):
            yield self.between if row else begin
            yield columns
        yield self.end

    def _split(self, view: View) -> Iterator[Part]:
        rows, columns = view.grid if len(view.pieces) > 1 else (0, 0)
        line = ""
        for row in range(rows):
            for column in range(columns):
                yield f"{line}{self.end}<row_{row + 1}_col_{column + 1}>"
                yield self.tokens
                line = ""
            line = "\n"
        yield f"{line}{line}{self.begin}"
        yield self.tokens
        yield self.end

    def count(self, view: View) -> int:
        """The number of image tokens of an image."""
        return sum(item for item in self.parts(view) if isinstance(item, int))
