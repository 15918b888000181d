from __future__ import annotations

from collections.abc import Callable

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vla.common.images import fitted, resize
from vla.common.stored_image import StoredImage
from vla.models.preprocessing.frames import Pad
from vla.models.preprocessing.view import draw_all

SIZES = st.integers(1, 60)


@given(SIZES, SIZES, SIZES, SIZES)
def test_resize_gives_the_size(height: int, width: int, tall: int, wide: int) -> None:
    image = np.full((height, width, 3), 255, np.uint8)
    assert resize(image, tall).shape == (tall, tall, 3)
    assert resize(image, (tall, wide)).shape == (tall, wide, 3)


@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 4))
def test_a_frame_of_the_images_own_shape_has_no_bars(height: int, width: int, factor: int) -> None:
    image = np.full((height * factor, width * factor, 3), 255, np.uint8)
    assert resize(image, (height, width)).all()


@given(st.integers(8, 60), st.integers(8, 60))
def test_bars_are_black_centred_and_the_picture_keeps_its_colour(height: int, width: int) -> None:
    size = 32
    square = resize(np.full((height, width, 3), (250, 120, 30), np.uint8), size)
    lit = square.any(axis=2)
    np.testing.assert_array_equal(square[lit], np.broadcast_to([250, 120, 30], (lit.sum(), 3)))
    rows, columns = np.flatnonzero(lit.any(axis=1)), np.flatnonzero(lit.any(axis=0))
    assert max(len(rows), len(columns)) == size
    assert abs(len(rows) / len(columns) - height / width) <= max(height / width, 1) / min(len(rows), len(columns))
    for used in (rows, columns):
        assert abs(used[0] - (size - 1 - used[-1])) <= 1


def test_an_image_of_the_size_is_untouched() -> None:
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    np.testing.assert_array_equal(resize(image, 32), image)


@given(SIZES, SIZES, SIZES, SIZES, st.integers(0, 9))
def test_it_is_what_pillow_makes(height: int, width: int, tall: int, wide: int, seed: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    left, top, *new = fitted(height, width, (tall, wide))
    frame = Image.new("RGB", (wide, tall))
    frame.paste(Image.fromarray(image).resize((new[0], new[1]), Image.Resampling.BILINEAR), (left, top))
    assert np.abs(resize(image, (tall, wide)).astype(int) - np.asarray(frame)).max() <= 2


def test_an_image_that_is_not_to_be_written_or_lies_backwards() -> None:
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    expected = resize(image.copy(), 16)
    image.flags.writeable = False
    np.testing.assert_array_equal(resize(image, 16), expected)
    np.testing.assert_array_equal(resize(image[:, ::-1, ::-1], 16), resize(image[:, ::-1, ::-1].copy(), 16))


class Coded:
    """Images that are one more than their number everywhere, decoded in an order of its own."""

    shape = (6, 8, 3)

    def for_each(self, indices: np.ndarray, use: Callable[[int, np.ndarray], None]) -> None:
        image = np.empty(self.shape, np.uint8)
        for place in reversed(range(len(indices))):
            image[:] = indices[place] + 1
            use(place, image)


def test_stored_images_are_put_into_their_frames() -> None:
    near, far = Coded(), Coded()
    arrays = [np.full((5, 5, 3), 200, np.uint8), np.full((8, 8, 3), 100, np.uint8)]
    images = [StoredImage(near, 3), arrays[0], StoredImage(far, 7), StoredImage(near, 5), arrays[1]]
    frames = np.full((5, 8, 8, 3), 255, np.uint8)
    views = [Pad((8, 8)).view(*image.shape[:2]) for image in images]
    draw_all(images, views, [[frame] for frame in frames])
    for frame, image in zip(frames, images, strict=True):
        whole = image.decoded() if isinstance(image, StoredImage) else image
        np.testing.assert_array_equal(frame, resize(whole, 8))
    assert frames[:, 4, 4, 0].tolist() == [4, 200, 8, 6, 100]


def test_shrinking_averages_what_it_drops() -> None:
    board = np.zeros((64, 64, 3), np.uint8)
    board[:, ::2] = 200
    inner = resize(board, 16)[2:-2, 2:-2].astype(int)
    assert np.abs(inner - 100).max() <= 2


def test_a_place_keeps_its_fraction_of_the_image() -> None:
    image = np.zeros((96, 96, 3), np.uint8)
    image[60:68, 20:28] = 255
    small = resize(image, 48)[..., 0].astype(float)
    rows, columns = np.mgrid[:48, :48] + 0.5
    centre = np.array([(small * rows).sum(), (small * columns).sum()]) / small.sum() / 48
    np.testing.assert_allclose(centre, [64 / 96, 24 / 96], atol=0.005)
