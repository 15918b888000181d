"""Films of episodes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from vla.datasets.formats.video_frames import VideoReader
from vla.errors import InputError
from vla.recording.video import compose, write_video
from vla.types import Episode

Make = Callable[..., Episode]


@pytest.mark.parametrize("success", [True, False])
def test_composed_frames_show_cameras_and_outcome(make_episode: Make, success: bool) -> None:
    episode = make_episode(success=success)
    frames = list(compose(episode))
    assert len(frames) == len(episode)
    height, width = frames[0].shape[:2]
    assert height % 2 == 0 and width % 2 == 0
    red, green, _ = frames[0][-2, 2].astype(int)
    assert (green > red) == success
    # The cameras are side by side, in order, upscaled.
    for i, images in enumerate(episode.images.values()):
        patch = frames[2][36 : height - 36, i * width // 2 : (i + 1) * width // 2]
        small = np.asarray(Image.fromarray(patch).resize((10, 8), Image.Resampling.BOX)).astype(int)
        assert np.abs(small - images[2]).mean() < 30
    assert not np.array_equal(frames[0][:36], np.broadcast_to(frames[0][0, 0], frames[0][:36].shape))


def test_composed_frames_ring_the_point_in_its_camera_alone(make_episode: Make) -> None:
    plain = make_episode()
    ringed = replace(plain, points=np.tile([[0.5, 0.5], [1.5, 0.5]], (5, 1, 1)))
    changed = next(iter(compose(plain))) != next(iter(compose(ringed)))
    rows, columns = np.nonzero(changed.any(axis=2))
    width = changed.shape[1] // 2
    assert columns.max() < width
    assert abs(columns.mean() - width / 2) < 2 and abs(rows.mean() - changed.shape[0] / 2) < 2


def test_a_folder_with_a_colon_is_no_protocol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path("part-0:4/film.mp4")
    write_video(path, np.zeros((2, 16, 16, 3), np.uint8), fps=10)
    film = VideoReader(path)
    assert film.read(np.array([0.1]), tolerance=0.01).shape == (1, 16, 16, 3)
    film.close()


def test_mp4_holds_the_frames(tmp_path: Path) -> None:
    """Odd sizes too: the encoder pads them."""
    shade = np.linspace(20, 230, 12).astype(np.uint8)
    frames = [np.full((31, 45, 3), s, np.uint8) for s in shade]
    write_video(tmp_path / "new" / "a.mp4", iter(frames), fps=12.5)
    with av.open(str(tmp_path / "new" / "a.mp4")) as container:
        assert container.streams.video[0].average_rate == 12.5
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(decoded) == 12 and decoded[0].shape == (32, 46, 3)
    np.testing.assert_allclose([frame.mean() for frame in decoded], shade, atol=3)
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["a.mp4"]


def test_gif_holds_the_frames(tmp_path: Path) -> None:
    shade = [20, 120, 220]
    write_video(tmp_path / "a.gif", [np.full((8, 8, 3), s, np.uint8) for s in shade], fps=10.0)
    with Image.open(tmp_path / "a.gif") as film:
        assert film.n_frames == 3 and film.info["duration"] == 100 and film.info["loop"] == 0
        for i, expected in enumerate(shade):
            film.seek(i)
            assert abs(np.asarray(film.convert("RGB")).mean() - expected) < 3


def test_films_that_cannot_be(tmp_path: Path) -> None:
    frame = np.zeros((8, 8, 3), np.uint8)

    def failing() -> Any:
        yield frame
        raise InputError("the store is damaged")

    for name, frames, fps, message in (
        ("a.avi", [frame], 10.0, "name it .mp4 or .gif"),
        ("a.mp4", [], 10.0, "no frames"),
        ("a.gif", [frame], 0.0, "positive frame rate"),
        ("a.mp4", failing(), 10.0, "damaged"),
    ):
        with pytest.raises(InputError, match=message):
            write_video(tmp_path / name, frames, fps)
    assert list(tmp_path.iterdir()) == []
