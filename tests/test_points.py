"""Points keep their camera and thing, whatever the number of things and the order of the cameras."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla.common.points import arrange_points
from vla.errors import InputError

CAMERAS = ("front", "wrist", "top")


@given(st.permutations(CAMERAS), st.permutations(CAMERAS), st.integers(1, 3), st.integers(1, 3), st.integers(0, 2))
def test_a_point_stays_that_of_its_camera_and_thing(
    cameras: list[str], wanted: list[str], things: int, room: int, steps: int
) -> None:
    # Each point says what it is of.
    points = np.array([[CAMERAS.index(camera), thing] for camera in cameras for thing in range(things)], float)
    points = np.stack([points] * steps) if steps else points
    if things > room:
        with pytest.raises(InputError, match="do not fit into"):
            arrange_points(points, cameras, wanted, 3 * room)
        return
    arranged = arrange_points(points, cameras, wanted, 3 * room)
    # There is no thing beyond those that are named.
    expected = [
        [CAMERAS.index(camera), thing] if thing < things else [-1, -1] for camera in wanted for thing in range(room)
    ]
    np.testing.assert_array_equal(arranged, np.broadcast_to(expected, arranged.shape))
    # What was known comes back.
    fewer = arranged.reshape(*arranged.shape[:-2], 3, room, 2)[..., :things, :].reshape(points.shape)
    np.testing.assert_array_equal(arrange_points(fewer, wanted, cameras, 3 * things), points)


def test_a_camera_without_points_is_unknown() -> None:
    known = arrange_points(np.array([[0.1, 0.2], [0.3, 0.4]]), ("a", "b"), ("b", "c"), 2)
    np.testing.assert_array_equal(known, [[0.3, 0.4], [np.nan, np.nan]])


@pytest.mark.parametrize(
    ("have", "cameras", "wanted", "count"), [(3, "ab", "ab", 4), (2, "ab", "ab", 3), (2, "", "ab", 2)]
)
def test_points_that_are_not_as_many_of_each_camera_are_refused(
    have: int, cameras: str, wanted: str, count: int
) -> None:
    with pytest.raises(InputError, match="cannot divide"):
        arrange_points(np.zeros((have, 2)), cameras, wanted, count)


def test_where_nothing_is_known_it_is_not_known_how_much_there_is() -> None:
    points = np.full((3, 2, 2), np.nan)
    points[1, 0] = 0.5
    arranged = arrange_points(points, ("a", "b"), ("a", "b"), 4)
    assert np.isnan(arranged[[0, 2]]).all()
    np.testing.assert_array_equal(arranged[1], [[0.5, 0.5], [-1, -1], [np.nan, np.nan], [-1, -1]])


def test_points_as_they_are_wanted_are_left_as_they_are() -> None:
    points = np.zeros((5, 3, 2))
    assert arrange_points(points, ("a", "b"), ("a", "b"), 3) is points
