"""What a vision encoder is shown of an image, against transformers' own image processors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    CLIPImageProcessor,
    GotOcr2ImageProcessor,
    LlavaImageProcessor,
    MllamaImageProcessor,
    PixtralImageProcessor,
    Qwen2VLImageProcessor,
    SiglipImageProcessor,
    SmolVLMImageProcessor,
)

from vla.errors import InputError
from vla.models.preprocessing.frames import Crop, Pad, Square, Stretch
from vla.models.preprocessing.native import Native, Patches
from vla.models.preprocessing.settings import KINDS, Framing, Preprocessing
from vla.models.preprocessing.tiles import Canvas, Split, Tiles, Whole
from vla.models.preprocessing.view import draw

SIZES = [(480, 640), (97, 333), (220, 170), (28, 28), (5, 90)]
PLAIN = {"do_rescale": False, "do_normalize": False, "return_tensors": "pt"}
CLIP = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
GREY = {"image_mean": [0.5, 0.4, 0.3]}


def photo(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)


def shown(framing: Framing, image: np.ndarray) -> list[Tensor]:
    """Each frame (3 h w)."""
    view = framing.view(*image.shape[:2])
    frames = [np.full((*piece.frame, 3), 77, np.uint8) for piece in view.pieces]
    draw(image, view, frames)
    return [torch.from_numpy(frame).permute(2, 0, 1) for frame in frames]


def theirs(processor: Any, image: np.ndarray, **options: Any) -> list[Tensor]:
    """Each frame that transformers' image processor gives."""
    return list(processor(image, **PLAIN, **options)["pixel_values"].flatten(0, -4))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("framing", "processor", "options"),
    [
        (Stretch((28, 42)), SiglipImageProcessor(size={"height": 28, "width": 42}), {}),
        (Crop((28, 28), 28), CLIPImageProcessor(**CLIP), {}),
        (Crop((30, 26), 28), CLIPImageProcessor(**CLIP | {"crop_size": {"height": 30, "width": 26}}), {}),
        (Square((28, 28), fill=(127, 102, 76)), LlavaImageProcessor(**CLIP, **GREY, do_pad=True), {}),
        (Tiles((28, 28)), GotOcr2ImageProcessor(size={"height": 28, "width": 28}), {"crop_to_patches": True}),
        (
            Split(28, 112),
            SmolVLMImageProcessor(size={"longest_edge": 112}, max_image_size={"longest_edge": 28}, resample=3),
            {},
        ),
        (
            Whole(28, 112),
            SmolVLMImageProcessor(
                size={"longest_edge": 112}, max_image_size={"longest_edge": 28}, resample=3, do_image_splitting=False
            ),
            {},
        ),
        (Patches(16, 200), PixtralImageProcessor(size={"longest_edge": 200}), {}),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_shows_what_the_released_processor_shows(
    framing: Framing, processor: Any, options: dict[str, Any], size: tuple[int, int]
) -> None:
    expected = theirs(processor, photo(*size), **options)
    found = shown(framing, photo(*size))
    assert len(found) == len(expected)
    assert all(torch.equal(ours, other) for ours, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("size", SIZES)
def test_llama_s_canvas_is_that_of_its_processor(size: tuple[int, int]) -> None:
    out = MllamaImageProcessor(size={"height": 28, "width": 28})(photo(*size), **PLAIN)
    framing = Canvas((28, 28))
    found = shown(framing, photo(*size))
    count = out["num_tiles"][0][0]
    assert len(found) == count
    assert torch.equal(torch.stack(found).float(), out["pixel_values"][0, 0, :count])


@pytest.mark.parametrize("size", SIZES)
def test_qwen_s_native_size_is_that_of_its_processor(size: tuple[int, int]) -> None:
    out = Qwen2VLImageProcessor(min_pixels=56 * 56, max_pixels=28 * 28 * 40)(photo(*size), **PLAIN)
    (found,) = shown(Native(28, 56 * 56, 28 * 28 * 40), photo(*size))
    grid = out["image_grid_thw"][0]
    assert found.shape[1:] == (14 * grid[1], 14 * grid[2])
    rows, columns = grid[1] // 2, grid[2] // 2
    patches = out["pixel_values"].reshape(rows, columns, 2, 2, 3, 2, 14, 14)
    expected = patches[..., 0, :, :].permute(4, 0, 2, 5, 1, 3, 6).reshape(found.shape)
    assert torch.equal(found, expected)


@given(
    st.integers(1, 3000),
    st.integers(1, 3000),
    st.sampled_from(
        [Native(28, 3136, 200704), Patches(16, 1024), Tiles((448, 448)), Split(512, 2048), Canvas((560, 560))]
    ),
)
def test_no_shape_of_an_image_leaves_the_budget(height: int, width: int, framing: Any) -> None:
    if framing.kind == "native" and max(height, width) > 200 * min(height, width):
        with pytest.raises(InputError, match="too long"):
            framing.view(height, width)
        return
    view = framing.view(height, width)
    most = {"tiles": 13, "split": 65, "canvas": 4}.get(framing.kind, 1)
    assert 1 <= len(view.pieces) <= most
    pixels = view.pieces[0].frame[0] * view.pieces[0].frame[1]
    if framing.kind == "native" and max(height, width) < 50 * min(height, width):
        assert 3136 <= pixels <= 200704
    for piece in view.pieces:
        left, top, wide, tall = piece.content
        assert min(piece.frame) > 0 and min(min(size) for size in piece.sizes) > 0
        assert min(left, top) >= 0 and left + wide <= piece.frame[1] and top + tall <= piece.frame[0]


def test_bars_are_filled_and_what_is_cut_off_is_not_shown() -> None:
    image = np.full((10, 20, 3), 200, np.uint8)
    (padded,) = shown(Pad((40, 40), fill=(1, 2, 3)), image)
    assert padded[:, 0, 0].tolist() == [1, 2, 3]
    assert (padded[:, 10:30] == 200).all()
    assert (shown(Crop((10, 10), 10), image)[0] == 200).all()


@pytest.mark.parametrize("kind", KINDS)
def test_settings_are_read_as_they_were_saved(kind: str) -> None:
    made = {
        "pad": {"size": [28, 28], "fill": [1, 2, 3]},
        "crop": {"size": [28, 28], "shortest": 30},
        "native": {"cell": 28, "least": 1, "most": 2},
        "patches": {"cell": 16, "longest": 64},
        "split": {"side": 28, "longest": 112},
        "whole": {"side": 28, "longest": 112},
        "crops": {"side": 28, "patch": 7},
    }.get(kind, {"size": [28, 28]})
    first = Preprocessing.from_dict({"kind": kind, **made, "markup": {"tokens": 4}})
    assert Preprocessing.from_dict(first.to_dict()) == first
    with pytest.raises(InputError, match="is not an image preprocessing"):
        Preprocessing.from_dict({"kind": kind, **made, "other": 1})
