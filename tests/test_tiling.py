"""Dynamic tiling: the grid nearest in shape, tiles that put the image together again, and the whole image last."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla.common.images import scaled
from vla.errors import InputError
from vla.models.preprocessing.tiles import Tiles
from vla.models.preprocessing.tiling import tile_grid
from vla.models.preprocessing.view import draw


@pytest.mark.parametrize(
    ("height", "width", "grid"),
    [
        (448, 448, (1, 1)),
        (1000, 1000, (3, 3)),  # more than half of nine tiles
        (700, 700, (2, 2)),
        (480, 640, (3, 4)),
        (640, 480, (4, 3)),
        (448, 896, (1, 2)),
        (896, 1792, (2, 4)),
        (100, 1000, (1, 10)),
        (10, 4000, (1, 12)),
    ],
)
def test_the_grid_is_nearest_in_shape(height: int, width: int, grid: tuple[int, int]) -> None:
    assert tile_grid(height, width, 448) == grid


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 12), st.integers(0, 11))
def test_no_allowed_grid_is_nearer(height: int, width: int, least: int, more: int) -> None:
    most = least + more
    rows, columns = tile_grid(height, width, 100, most, least)
    assert least <= rows * columns <= most
    for r in range(1, most + 1):
        for c in range(1, most // r + 1):
            if r * c >= least:
                assert abs(width / height - columns / rows) <= abs(width / height - c / r)


def tiles(image: np.ndarray, side: int, most: int = 12) -> np.ndarray:
    view = Tiles((side, side), most).view(*image.shape[:2])
    frames = np.zeros((len(view.pieces), side, side, 3), np.uint8)
    draw(image, view, list(frames))
    return frames


def test_tiles_are_the_stretched_image_row_by_row_and_then_the_whole() -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    found = tiles(image, 32)
    rows, columns = 2, 3
    assert found.shape == (rows * columns + 1, 32, 32, 3)
    put = np.concatenate([np.concatenate(found[r * columns : (r + 1) * columns], 1) for r in range(rows)])
    np.testing.assert_array_equal(put, scaled(image, 64, 96, "bicubic"))
    np.testing.assert_array_equal(found[-1], scaled(image, 32, 32, "bicubic"))


def test_an_image_of_the_tile_size_is_itself() -> None:
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    np.testing.assert_array_equal(tiles(image, 32), image[None])


@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 6))
def test_one_color_stays_that_color(height: int, width: int, most: int) -> None:
    image = np.full((height, width, 3), (9, 200, 30), np.uint8)
    found = tiles(image, 16, most)
    assert (found == image[0, 0]).all()
    assert len(found) == 1 or 3 <= len(found) <= most + 1


@pytest.mark.parametrize("bounds", [(0, 0), (3, 4)])
def test_impossible_numbers_of_tiles_are_named(bounds: tuple[int, int]) -> None:
    with pytest.raises(InputError, match=f"not {bounds[1]} to {bounds[0]}"):
        tile_grid(10, 10, 16, *bounds)


def test_an_empty_image_is_named() -> None:
    with pytest.raises(InputError, match="0 x 10"):
        tile_grid(0, 10, 16)
