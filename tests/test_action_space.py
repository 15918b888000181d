"""What actions are: to the network's targets and back is the identity, angles wrap, rotations are composed."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation as Spatial

from vla.common.rotations import convert, decode, encode
from vla.embodiment import Embodiment, Rotation, declares_actions
from vla.errors import InputError
from vla.kinematics.action_space import average, difference, interpolate, unwrapped, wrapped
from vla.models.action_targets import ActionTargets, relative_components

REPRESENTATIONS = (
    "euler_xyz",
    "euler_ZYX",
    "euler_zyx_deg",
    "quaternion_xyzw",
    "quaternion_wxyz",
    "axis_angle",
    "rotation_6d",
)
SEEDS = st.integers(0, 2**31)


def pose(representation: str, state_representation: str = "quaternion_wxyz") -> Embodiment:
    """A tool pose with a gripper between, whose rotation is measured in another representation, behind a joint."""
    width = len(encode(Spatial.identity(1), representation)[0])
    measured = len(encode(Spatial.identity(1), state_representation)[0])
    action = ("x [m]", "grip [1]", *(f"r{i}" for i in range(width)), "z [m]")
    state = ("joint [rad]", "z [m]", "x [m]", *(f"m{i}" for i in range(measured)), "grip [1]")
    rotation = Rotation(tuple(range(2, 2 + width)), representation, tuple(range(3, 3 + measured)), state_representation)
    return Embodiment(
        name="pose",
        cameras=(),
        state=state,
        action=action,
        action_low=(-9.0,) * len(action),
        action_high=(9.0,) * len(action),
        control_hz=10.0,
        action_state=("x [m]", "grip [1]", *(None,) * width, "z [m]"),
        grippers=("grip [1]",),
        rotations=(rotation,),
    )


def random_pose(body: Embodiment, seed: int, *rows: int) -> tuple[Any, Any]:
    """Actions (*rows, 4, a) and states (*rows, s), rotations anywhere."""
    rng, (rotation,) = np.random.default_rng(seed), body.rotations
    action = rng.normal(size=(*rows, 4, len(body.action)))
    state = rng.normal(size=(*rows, len(body.state)))
    turns = encode(Spatial.random(4 * max(1, int(np.prod(rows))), rng), rotation.representation)
    action[..., rotation.action] = turns.reshape(*rows, 4, -1)
    turns = encode(Spatial.random(max(1, int(np.prod(rows))), rng), rotation.state_representation)
    state[..., rotation.state] = turns.reshape(*rows, -1)
    return action, state


@pytest.mark.parametrize("predict", ["relative", "unchanged"])
@pytest.mark.parametrize("representation", REPRESENTATIONS)
@given(SEEDS)
def test_to_targets_and_back_is_the_same_rotation(representation: str, predict: str, seed: int) -> None:
    body = pose(representation)
    targets = ActionTargets(body, relative_components(body, predict))
    assert targets.action_dim == len(targets.names) == (6 if predict == "relative" else 9)
    action, state = random_pose(body, seed, 3)
    back = targets.decode(targets.encode(action, state), state)
    at = list(body.rotations[0].action)
    plain = [i for i in range(len(body.action)) if i not in at]
    np.testing.assert_allclose(back[..., plain], action[..., plain], atol=1e-12)
    apart = decode(back[..., at], representation).inv() * decode(action[..., at], representation)
    np.testing.assert_allclose(apart.magnitude(), 0, atol=1e-6)


@given(SEEDS)
def test_a_relative_rotation_is_composed_and_does_not_depend_on_the_base(seed: int) -> None:
    body = pose("axis_angle", "axis_angle")
    targets, rng = ActionTargets(body, relative_components(body, "relative")), np.random.default_rng(seed)
    action, state = random_pose(body, seed)
    at = list(body.rotations[0].action)
    told = targets.encode(action, state)[..., 2:5]
    measured = Spatial.from_rotvec(state[3:6])
    np.testing.assert_allclose(
        (Spatial.from_rotvec(told) * measured).as_matrix(), Spatial.from_rotvec(action[:, at]).as_matrix(), atol=1e-9
    )
    # Standing still is no rotation, wherever the tool points; and a step is no longer than half a turn.
    still = targets.encode(body.hold_action(state)[None], state)
    np.testing.assert_allclose(still[0, [0, 2, 3, 4, 5]], 0, atol=1e-7)
    assert (np.linalg.norm(told, axis=1) <= np.pi + 1e-9).all() and rng is not None


def test_six_dimensions_do_not_jump_where_euler_angles_do() -> None:
    body = pose("euler_xyz")
    targets, state = ActionTargets(body, relative_components(body, "unchanged")), np.zeros(len(body.state))
    yaw = np.deg2rad(np.linspace(170, 190, 21))
    action = np.zeros((21, len(body.action)))
    action[:, 4] = (yaw + np.pi) % (2 * np.pi) - np.pi
    assert np.abs(np.diff(action, axis=0)).max() > 6
    assert np.abs(np.diff(targets.encode(action, state), axis=0)).max() < 0.02


def turntable(turn: float, low: float = -1.0) -> Embodiment:
    names = ("yaw", "lift [m]")
    return Embodiment("table", (), names, names, (low, 0.0), (400.0, 1.0), 10.0, action_turn=(turn, 0.0))


@pytest.mark.parametrize("turn", [2 * np.pi, 360.0])
@given(SEEDS)
def test_an_angle_goes_the_shorter_way_and_comes_back(turn: float, seed: int) -> None:
    body, rng = turntable(turn), np.random.default_rng(seed)
    state = np.array([rng.uniform(-turn / 2, turn / 2), 0.5])
    action = np.stack([rng.uniform(-turn / 2, turn / 2, 5), rng.uniform(0, 1, 5)], axis=1)
    for predict, width in (("relative", 2), ("unchanged", 3)):
        targets = ActionTargets(body, relative_components(body, predict))
        told = targets.encode(action, state)
        assert told.shape == (5, width)
        np.testing.assert_allclose(targets.decode(told, state), action, atol=1e-9)
        if predict == "relative":
            assert (np.abs(told[:, 0]) <= turn / 2 + 1e-9).all()
    for share in (0.0, 0.3, 1.0):
        between = interpolate(body, action[0], action[1], share)
        covered = difference(body, between[None], action[:1])[0, 0]
        np.testing.assert_allclose(covered, share * difference(body, action[1:2], action[:1])[0, 0], atol=1e-9)


def test_angles_that_are_never_negative_stay_so() -> None:
    body = turntable(360.0, low=0.0)
    np.testing.assert_allclose(wrapped(body, np.array([[365.0, 0.5], [-5.0, 0.5]]))[:, 0], [5.0, 355.0])
    np.testing.assert_allclose(
        average(body, np.array([[350.0, 0.0], [20.0, 1.0]]), np.array([0.5, 0.5])), [5.0, 0.5], atol=1e-9
    )


def test_a_path_across_the_seam_has_no_jerk() -> None:
    body = turntable(360.0)
    path = np.stack([(np.arange(170.0, 190.0) + 180) % 360 - 180, np.zeros(20)], axis=1)
    assert np.abs(np.diff(path, axis=0)).max() > 300
    np.testing.assert_allclose(np.diff(unwrapped(body, path)[:, 0]), 1.0)


@pytest.mark.parametrize("representation", REPRESENTATIONS)
@given(SEEDS)
def test_between_two_rotations_lie_rotations_about_one_axis(representation: str, seed: int) -> None:
    body = pose(representation)
    at = list(body.rotations[0].action)
    action, _ = random_pose(body, seed)
    start, goal = action[0], action[1]
    between = interpolate(body, start, goal, 0.25)
    first, middle, last = (decode(values[at], representation) for values in (start, between, goal))
    whole = (first.inv() * last).magnitude()[0]
    np.testing.assert_allclose((first.inv() * middle).magnitude()[0], 0.25 * whole, atol=1e-6)
    np.testing.assert_allclose((middle.inv() * last).magnitude()[0], 0.75 * whole, atol=1e-6)
    mean = average(body, action[:3], np.array([0.2, 0.5, 0.3]))
    np.testing.assert_allclose(mean[0], 0.2 * action[0, 0] + 0.5 * action[1, 0] + 0.3 * action[2, 0])
    same = average(body, np.stack([start] * 3), np.ones(3))
    np.testing.assert_allclose((decode(same[at], representation).inv() * first).magnitude(), 0, atol=1e-6)


@pytest.mark.parametrize("representation", REPRESENTATIONS)
@given(SEEDS)
def test_representations_of_one_rotation(representation: str, seed: int) -> None:
    matrix = Spatial.random(4, np.random.default_rng(seed))
    values = encode(matrix, representation)
    for other in REPRESENTATIONS:
        there = convert(values, representation, other)
        np.testing.assert_allclose(decode(there, other).as_matrix(), matrix.as_matrix(), atol=1e-6)


def test_any_six_numbers_are_a_rotation() -> None:
    rows = np.array([[0.0] * 6, [1, 0, 0, 2, 0, 0], [0, 0, 3, 0, 0, -1], [1, 2, 3, 4, 5, 6]], float)
    matrices = decode(rows, "rotation_6d").as_matrix()
    np.testing.assert_allclose(matrices @ matrices.transpose(0, 2, 1), np.broadcast_to(np.eye(3), (4, 3, 3)), atol=1e-9)
    np.testing.assert_allclose(np.linalg.det(matrices), 1)


ARM = Embodiment(
    name="arm",
    cameras=("front", "wrist"),
    state=("elbow [rad]", "hand [m]"),
    action=("elbow [rad]", "hand [m]", "spin [rad/s]", "grip [N]"),
    action_low=(-2.0, 0.5, -1.0, 0.0),
    action_high=(2.0, 1.0, 1.0, 5.0),
    control_hz=10.0,
    action_mode=("absolute", "delta", "velocity", "force"),
)


def test_holding_still_commands_the_position_and_no_change() -> None:
    np.testing.assert_array_equal(ARM.hold_action(np.array([0.3, 0.7])), [0.3, 0, 0, 0])
    np.testing.assert_array_equal(ARM.is_position_action, [True, False, False, False])
    unmeasured = replace(ARM, action_mode=("absolute",) * 4, action_state=("elbow [rad]", None, None, None))
    np.testing.assert_array_equal(unmeasured.hold_action(np.array([0.3, 0.7])), [0.3, 0.5, 0, 0])


def test_only_positions_that_are_measured_are_relative() -> None:
    assert relative_components(ARM, "relative") == (True, False, False, False)
    assert relative_components(ARM, {"elbow [rad]": "unchanged"}) == (False,) * 4
    gripped = replace(ARM, grippers=("elbow [rad]",))
    assert relative_components(gripped, "relative") == (False,) * 4
    assert relative_components(gripped, {"elbow [rad]": "relative"}) == (True, False, False, False)
    for predict, message in (
        ({"hand [m]": "relative"}, r"hand \[m\] of arm cannot be relative"),
        ({"knee": "relative"}, "no action 'knee'"),
        ("delta", "relative or unchanged, not 'delta'"),
    ):
        with pytest.raises(InputError, match=message):
            relative_components(ARM, predict)  # type: ignore[arg-type]


def test_limits_and_the_order_of_cameras_are_no_identity() -> None:
    other = replace(ARM, name="twin", cameras=("wrist", "front"), action_low=(-3.0, 0.0, -1.0, 0.0))
    ARM.check(other)
    both = ARM.union([other])
    assert (both.cameras, both.action_low, both.action_high) == (ARM.cameras, other.action_low, ARM.action_high)
    for changed, message in (
        (
            {"action_mode": ("absolute", "absolute", "velocity", "force")},
            r"action_mode: hand \[m\] is delta, of the",
        ),
        ({"cameras": ("front",)}, "cameras: front, wrist, of the other front"),
        ({"action_turn": (6.28, 0.0, 0.0, 0.0)}, r"action_turn: elbow \[rad\] is 0.0"),
        ({"control_hz": 20.0}, "control_hz"),
    ):
        with pytest.raises(InputError, match=message):
            ARM.check(replace(ARM, **changed))  # type: ignore[arg-type]


def test_recordings_in_which_nothing_comes_round_take_the_turns_and_rotations_of_those_in_which_it_does() -> None:
    turned = replace(ARM, action_turn=(6.28, 0.0, 0.0, 0.0))
    for union in (ARM.union([turned]), turned.union([ARM])):
        assert union.action_turn == turned.action_turn and union.rotations == ARM.rotations
    body = pose("axis_angle")
    plain = replace(body, rotations=())
    for union in (plain.union([body]), body.union([plain])):
        assert union.rotations == body.rotations
    with pytest.raises(InputError, match="action_turn"):
        turned.union([replace(ARM, action_turn=(360.0, 0.0, 0.0, 0.0))])
    with pytest.raises(InputError, match="rotations"):
        body.union([pose("euler_xyz")])


def test_an_embodiment_survives_json() -> None:
    for body in (ARM, pose("euler_ZYX")):
        values = json.loads(json.dumps(body.to_dict()))
        assert declares_actions(values) and Embodiment.from_dict(values) == body


def test_one_of_before_keeps_the_meaning_that_it_had() -> None:
    names = ("name", "cameras", "state", "action", "action_low", "action_high", "control_hz")
    old = {key: value for key, value in ARM.to_dict().items() if key in names}
    assert not declares_actions(old)
    body = Embodiment.from_dict(old)
    assert body.action_mode == ("absolute", "absolute", "delta", "delta")
    assert body.action_state == ("elbow [rad]", "hand [m]", None, None)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"action_mode": ("absolute",)}, "action_mode has 1 values for 4 actions"),
        ({"action_mode": ("absolute", "relative", "delta", "delta")}, "'relative' is no action mode"),
        ({"action_state": ("knee", None, None, None)}, "action_state names 'knee'"),
        ({"grippers": ("claw",)}, "grippers names 'claw'"),
        ({"rotations": (Rotation((0, 1, 2), "axis_angle"),)}, "one action mode"),
        ({"rotations": (Rotation((2, 3, 4), "axis_angle"),)}, "different action components"),
    ],
)
def test_a_meaning_that_cannot_be_is_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        replace(ARM, **fields)


@pytest.mark.parametrize("name", ["euler", "euler_xYz", "quaternion", "rpy"])
def test_an_unknown_representation_is_named(name: str) -> None:
    with pytest.raises(InputError, match=f"'{name}' is no rotation"):
        Rotation((0, 1, 2), name)
