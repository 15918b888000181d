"""Molmo's crops of a document."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vla.models.preprocessing.molmo_crops import Crops, patch_coverage, tiling, token_grid
from vla.models.preprocessing.view import draw


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [(480, 640, (2, 3)), (300, 900, (1, 4)), (1000, 300, (4, 1)), (336, 336, (1, 1)), (720, 1280, (3, 4))]
    + [(1700, 1200, (4, 3)), (90, 500, (1, 1)), (448, 448, (2, 2)), (113, 2000, (1, 9)), (112, 900, (1, 4))],
)
def test_tilings_are_those_of_the_original(height: int, width: int, expected: tuple[int, int]) -> None:
    assert tiling(height - 112, width - 112, 224) == expected


@given(st.integers(1, 3000), st.integers(1, 3000))
def test_a_tiling_fits_and_turns_with_the_image(height: int, width: int) -> None:
    rows, columns = tiling(height, width, 224)
    assert 1 <= rows * columns <= 12
    scale = min(rows * 224 / height, columns * 224 / width)
    others = [min(i * 224 / height, j * 224 / width) for i in range(1, 13) for j in range(1, 13) if i * j <= 12]
    fitting = [other for other in others if other >= 1]
    assert scale == pytest.approx(min(fitting) if fitting else max(others), rel=1e-6)


@given(st.integers(1, 4), st.integers(1, 3))
def test_the_crops_make_one_image(rows: int, columns: int) -> None:
    """An image whose pixels tell their place: each cell of the grid comes from a crop that shows just that place."""
    size, patch = 84, 7
    window = size - 8 * patch
    height, width = rows * window + 8 * patch, columns * window + 8 * patch
    assert tiling(height - 8 * patch, width - 8 * patch, window) == (rows, columns)
    y, x = np.meshgrid(np.arange(height) // 14, np.arange(width) // 14, indexing="ij")
    frames, _ = drawn(np.stack([y, x, np.zeros_like(y)], -1).astype(np.uint8), size, patch)
    assert frames.shape == (1 + rows * columns, size, size, 3)
    grid = token_grid(rows, columns, 6, 2)
    found = frames[:, 7::14, 7::14, :2].reshape(-1, 2)[grid].float()
    expected = torch.stack(torch.meshgrid(torch.arange(height // 14), torch.arange(width // 14), indexing="ij"), -1)
    torch.testing.assert_close(found, expected.float())
    assert grid.min() >= 36 and len(grid.unique()) == grid.numel()


def drawn(image: np.ndarray, size: int, patch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The frames (n h w 3), and where the image is on each."""
    view = Crops(size, patch).view(*image.shape[:2])
    frames = np.zeros((len(view.pieces), size, size, 3), np.uint8)
    draw(image, view, list(frames))
    return torch.from_numpy(frames), torch.tensor([piece.content for piece in view.pieces])


def test_a_cell_is_of_the_crop_that_has_it_least_at_its_border() -> None:
    grid = token_grid(1, 2, side=12, margin=2)
    assert grid.shape == (12, 20)
    crop, column = grid[0] // 144, grid[0] % 12
    assert crop.tolist() == [1] * 10 + [2] * 10
    assert column.tolist() == [*range(10), *range(2, 12)]


def test_padding_of_crops() -> None:
    """White, wide and low: black above and below, of which each patch tells its share."""
    frames, content = drawn(np.full((50, 200, 3), 255, np.uint8), 84, 7)
    assert frames[0, 42].min() == 255 and frames[0, 0].max() == 0
    shown = (frames[1:, ..., 0] / 255).unflatten(1, (12, 7)).unflatten(3, (12, 7)).mean((2, 4)).flatten(1)
    torch.testing.assert_close(patch_coverage(content[1:], 84, 7), shown, atol=1e-6, rtol=0)
