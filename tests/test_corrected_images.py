from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla.commands import cli
from vla.datasets.episodes import EpisodeStore
from vla.datasets.formats.corrected_images import FLIPS, correct_images
from vla.embodiment import Embodiment
from vla.errors import InputError
from vla.types import Episode

ROBOT = Embodiment("arm", ("front", "wrist"), ("a",), ("a",), (-1.0,), (1.0,), 10.0)


class One:
    """A source of one episode, with a point of each camera where its brightest pixel is."""

    embodiment = ROBOT
    provenance: dict[str, Any] = {}

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.images = {c: rng.integers(0, 200, (2, 4, 6, 3), np.uint8) for c in ROBOT.cameras}
        places = {"front": (1, 2), "wrist": (3, 0)}
        for camera, (row, column) in places.items():
            self.images[camera][:, row, column] = 255
        self.points = np.array([[((c + 0.5) / 6, (r + 0.5) / 4) for r, c in places.values()]] * 2)

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Episode:
        return Episode(
            images=self.images,
            state=np.zeros((2, 1)),
            action=np.zeros((2, 1)),
            time=np.arange(2) / 10,
            instruction="look",
            embodiment=ROBOT,
            success=True,
            depth={"front": self.images["front"][..., 0].astype(np.uint16)},
            points=self.points,
        )


def brightest(frames: np.ndarray) -> tuple[float, float]:
    """Where the white pixel is: x and y as fractions."""
    row, column = np.argwhere((frames[0] == 255).all(-1))[0]
    return (column + 0.5) / frames.shape[2], (row + 0.5) / frames.shape[1]


@given(
    flip=st.sampled_from([None, *FLIPS]) | st.dictionaries(st.sampled_from(ROBOT.cameras), st.sampled_from([*FLIPS])),
    bgr=st.sampled_from([None, True, ["wrist"], "front"]),
)
def test_twice_is_as_it_was_and_points_follow(flip: Any, bgr: Any) -> None:
    source = One()
    options = {"flip": flip, "bgr": bgr}
    once = correct_images(source, options)
    episode, back = once[0], correct_images(once, options)[0]
    assert episode.points is not None and back.points is not None
    for place, camera in enumerate(ROBOT.cameras):
        np.testing.assert_allclose(episode.points[0, place], brightest(episode.images[camera]))
        np.testing.assert_array_equal(back.images[camera], source.images[camera])
    np.testing.assert_allclose(back.points, source.points)
    swapped = bgr is True or bgr == "front"
    np.testing.assert_array_equal(episode.depth["front"], episode.images["front"][..., 2 if swapped else 0])


def test_what_each_option_does() -> None:
    source = One()
    front, wrist = source.images["front"], source.images["wrist"]
    for flip, expected in (
        ("vertical", front[:, ::-1]),
        ("horizontal", front[:, :, ::-1]),
        ("rotate180", np.rot90(front, 2, (1, 2))),
    ):
        np.testing.assert_array_equal(correct_images(source, {"flip": flip})[0].images["front"], expected)
    only = correct_images(source, {"flip": {"wrist": "rotate180"}, "bgr": ["front"]})[0]
    np.testing.assert_array_equal(only.images["front"], front[..., ::-1])
    np.testing.assert_array_equal(only.images["wrist"], wrist[:, ::-1, ::-1])
    assert correct_images(source, {}) is source


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bgr": ["top"]}, "bgr: there is no camera 'top', only front, wrist"),
        ({"flip": {"top": "vertical"}}, "flip: there is no camera 'top'"),
        ({"flip": "up"}, "flip=up: choose vertical, horizontal, rotate180"),
        ({"flip": {"front": 90}}, "flip=90: choose"),
    ],
)
def test_an_unknown_camera_or_flip_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        correct_images(One(), options)


def test_a_store_is_corrected_and_another_correction_does_not_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = One()
    with EpisodeStore.create(tmp_path / "blue.zarr", ROBOT) as store:
        store.append(source[0])
    words = ["convert", str(tmp_path / "blue.zarr"), str(tmp_path / "red.zarr")]
    assert cli.main([*words, "bgr=true", "flip={wrist: rotate180}"]) == 0
    with EpisodeStore.open(tmp_path / "red.zarr") as store:
        np.testing.assert_array_equal(store[0].images["front"], source.images["front"][..., ::-1])
        assert store.provenance["conversion"]["options"] == {"bgr": True, "flip": {"wrist": "rotate180"}}
    for other in (["bgr=true"], ["flip={wrist: rotate180}"], []):
        assert cli.main([*words, *other]) == 2
        assert "not of this conversion (its options" in capsys.readouterr().err
    assert cli.main([*words, "flip={wrist: rotate180}", "bgr=true"]) == 0
    assert cli.main([*words[:2], str(tmp_path / "folder"), "bgr=true", "use_videos=false"]) == 0
