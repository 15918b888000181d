"""What a model knows of its robots: that two differ is said by the component."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from vla.embodiment import Embodiment
from vla.errors import InputError
from vla.models.action_tokenizers.bins import UniformBins
from vla.models.normalization import Normalizer
from vla.models.robot_spec import RobotSpec, check_same, check_together

ARM = Embodiment(
    name="arm",
    cameras=("front",),
    state=("elbow_flex [rad]",),
    action=("elbow_flex [rad]", "gripper [rad]"),
    action_low=(-2.0, 0.0),
    action_high=(2.0, 1.0),
    control_hz=10.0,
)


def spec(**fields: Any) -> RobotSpec:
    state, action = Normalizer((-1.0,), (1.0,)), Normalizer((-1.2, 0.0), (1.0, 1.0))
    return replace(RobotSpec(ARM, 4, state, action, "abc"), **fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"action": Normalizer((-1.5, 0.0), (1.0, 1.0))},
            r"action elbow_flex \[rad\]: the range's start is -1.2 in the checkpoint, -1.5 in the data",
        ),
        (
            {"action": Normalizer((-1.2, 0.0), (1.0, 0.9))},
            r"action gripper \[rad\]: the range's end is 1.0 in the checkpoint, 0.9 in the data",
        ),
        ({"state": Normalizer((-1.0,), (1.1,))}, r"state elbow_flex \[rad\]: the range's end is 1.0 .* 1.1"),
        (
            {"embodiment": replace(ARM, action_mode=("absolute", "delta"))},
            r"action_mode: gripper \[rad\] is absolute, of the other delta",
        ),
        ({"relative": (False, False)}, r"relative is \(True, False\) in the checkpoint, \(False, False\)"),
        ({"embodiment": replace(ARM, name="leg")}, "drives arm, the data are of leg"),
        ({"horizon": 8}, "horizon is 4 in the checkpoint, 8"),
        ({"points": 2}, "points is 0"),
        ({"statistics_hash": "abd"}, "other extremes"),
    ],
)
def test_what_differs_is_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_same([spec()], [spec(**fields)])


def test_the_same_robots_pass_in_any_order() -> None:
    leg = spec(embodiment=replace(ARM, name="leg"))
    check_same([spec(), leg], [leg, spec()])
    check_same([], [])
    # What was saved before the hash told of states too says nothing of them.
    check_same([spec(statistics_hash="")], [spec()])
    with pytest.raises(InputError, match="drives no robot, the data are of arm"):
        check_same([], [spec()])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"horizon": 5}, "horizon"),
        ({"bins": UniformBins(64)}, "bins"),
        ({"embodiment": ARM}, "two robots have the name arm"),
    ],
)
def test_robots_that_one_model_cannot_drive_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        check_together([spec(), spec(**({"embodiment": replace(ARM, name="leg")} | fields))])


def test_what_is_normalised_comes_back() -> None:
    robot, rng = spec(), np.random.default_rng(0)
    for _ in range(20):
        state, actions = rng.uniform(-1, 1, 1), rng.uniform([-1, 0], [1, 1], (4, 2))
        actions[:, 0] = np.clip(actions[:, 0], state - 1.2, state + 1)
        decoded = robot.denormalize_actions(robot.normalize_actions(actions, state), state)
        np.testing.assert_allclose(decoded, actions, atol=1e-12)
