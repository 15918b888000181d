"""Pictures in every mode that files come in, against what a viewer shows."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vla.common.rgb import to_rgb

RAMP = np.tile(np.linspace(0, 1, 256), (4, 1))


def opened(image: Image.Image, kind: str = "PNG", **options: object) -> np.ndarray:
    """The pixels after a way through a file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    with Image.open(buffer) as again:
        return to_rgb(again)


def drawing(mode: str) -> Image.Image:
    """A black bar on a transparent ground that is black underneath."""
    alpha = np.zeros((8, 8, 4), np.uint8)
    alpha[2:6, 3:5, 3] = 255
    return Image.fromarray(alpha).convert(mode)


@pytest.mark.parametrize(("mode", "kind"), [("RGBA", "PNG"), ("LA", "PNG"), ("RGBA", "WEBP"), ("RGBA", "TIFF")])
def test_what_is_transparent_is_white(mode: str, kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    expected = np.full((8, 8, 3), 255, np.uint8)
    expected[2:6, 3:5] = 0
    np.testing.assert_array_equal(opened(drawing(mode), kind, **options), expected)


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_transparent_color_is_white(kind: str) -> None:
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([200, 10, 20, 0, 0, 0])
    palette.putpixel((0, 0), 0)
    pixels = opened(palette, kind, transparency=1)
    assert pixels[0, 0].tolist() == [200, 10, 20]
    assert pixels[1, 1].tolist() == [255, 255, 255]
    color = Image.new("RGB", (2, 2), (1, 2, 3))
    assert (opened(color, transparency=(1, 2, 3)) == 255).all()
    gray = np.array([[0, 4095]], np.uint16)
    assert opened(Image.fromarray(gray), transparency=0)[..., 0].tolist() == [[255, 255]]


@given(st.integers(0, 255), st.integers(0, 255))
def test_half_transparent_is_between_the_color_and_white(value: int, alpha: int) -> None:
    pixel = to_rgb(Image.new("RGBA", (1, 1), (value, value, value, alpha)))[0, 0]
    assert np.abs(pixel - (value * alpha + 255 * (255 - alpha)) / 255).max() <= 1


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_grey_of_more_than_eight_bits_is_scaled(bits: int) -> None:
    values = np.rint(RAMP * (2**bits - 1)).astype(np.uint16)
    for pixels in (opened(Image.fromarray(values)), opened(Image.fromarray(values), "TIFF")):
        assert np.abs(pixels[..., 0] - np.arange(256)).max() <= 1
        assert (pixels == pixels[..., :1]).all()


def test_a_dark_16_bit_picture_stays_dark() -> None:
    dark = np.full((4, 4), 20_000, np.uint16)
    dark[0, 0] = 40_000
    assert opened(Image.fromarray(dark))[1, 1, 0] == round(20_000 * 255 / 65535)


def test_grey_of_32_bits_and_of_real_numbers_is_scaled() -> None:
    whole = (RAMP * 65535).astype(np.int32)
    assert np.abs(opened(Image.fromarray(whole), "TIFF")[..., 0] - np.arange(256)).max() <= 1
    shares = opened(Image.fromarray(RAMP.astype(np.float32)), "TIFF")
    assert np.abs(shares[..., 0] - np.arange(256)).max() <= 1
    levels = RAMP.astype(np.float32) * 255
    levels[0, :2] = (np.nan, -3)
    assert np.abs(opened(Image.fromarray(levels), "TIFF")[..., 0] - np.arange(256)).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_the_orientation_of_exif_is_applied(orientation: int, kind: str) -> None:
    """The red corner is where the camera's owner saw it; the table is of EXIF 2.3, section 4.6.4."""
    upright = np.full((16, 24, 3), 30, np.uint8)
    upright[:8, :8] = (250, 0, 0)
    back = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a),
        7: lambda a: np.rot90(a.transpose(1, 0, 2), 2),
        8: lambda a: np.rot90(a, 3),
    }
    exif = Image.Exif()
    exif[0x112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(back[orientation](upright)))
    options = {"quality": 95, "subsampling": 0} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    pixels = opened(stored, kind, exif=exif, **options)
    assert pixels.shape == upright.shape
    assert np.abs(pixels.astype(int) - upright).mean() < 3


def test_metadata_that_cannot_be_read_are_no_orientation() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 2), (9, 9, 9)).save(buffer, "PNG", exif=b"Exif\x00\x00MM\x00*\x00\x00\xff\xff")
    with Image.open(buffer) as image:
        assert to_rgb(image).shape == (2, 4, 3)


def test_other_modes_become_their_colors() -> None:
    assert opened(Image.new("1", (2, 2), 1)).min() == 255
    assert opened(Image.new("L", (2, 2), 77)).tolist() == [[[77, 77, 77]] * 2] * 2
    assert np.abs(opened(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG")[0, 0] - np.array([255, 0, 0])).max() < 6
    frames = [Image.new("RGB", (4, 4), color) for color in ((200, 0, 0), (0, 0, 200))]
    assert opened(frames[0], "GIF", save_all=True, append_images=frames[1:])[0, 0].tolist() == [200, 0, 0]


def test_what_is_not_transparent_is_as_pillow_has_it() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)
    np.testing.assert_array_equal(opened(Image.fromarray(pixels)), pixels)
