"""What actions are follows from the numbers, whatever the components are called."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation as Spatial

from vla.datasets.action_inference import infer_actions
from vla.embodiment import Embodiment
from vla.errors import InputError

SEEDS = st.integers(0, 2**31)
POSE = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")


def body_of(action: tuple[str, ...], state: tuple[str, ...] | None = None, hz: float = 10.0) -> Embodiment:
    low = (-9.0,) * len(action)
    return Embodiment("arm", (), action if state is None else state, action, low, tuple(-x for x in low), hz)


def smooth(rng: np.random.Generator, steps: int, width: int, scale: float = 0.5) -> Any:
    """A path that goes from one random place to the next, eased."""
    knots = rng.uniform(-scale, scale, (6, width)) + rng.uniform(-scale, scale, width)
    at = np.linspace(0, 5, steps)
    whole = np.minimum(at.astype(int), 4)
    share = (1 - np.cos(np.pi * (at - whole))) / 2
    return knots[whole] + (knots[whole + 1] - knots[whole]) * share[:, None]


def episodes(kind: str, seed: int, width: int = 3, count: int = 5, hz: float = 10.0) -> list[tuple[Any, Any]]:
    rng = np.random.default_rng(seed)
    made = []
    offset = rng.normal(0, 0.02, width)
    for _ in range(count):
        path = smooth(rng, 60, width)
        noise = rng.normal(0, 0.002, path.shape)
        change = np.diff(path, axis=0, append=path[-1:])
        if kind == "absolute":  # a follower that comes a step after its leader, and sags
            made.append((path, np.roll(path, -1, axis=0) + offset + noise))
            made[-1][1][-1] = path[-1]
        elif kind == "delta":
            made.append((path, change + noise))
        elif kind == "scaled delta":
            made.append((path, np.clip(change / 0.2, -1, 1) + 3 * noise))
        else:
            made.append((path, change * hz + noise))
    return made


@pytest.mark.parametrize("kind", ["absolute", "delta", "velocity", "scaled delta"])
@settings(max_examples=25)
@given(SEEDS)
def test_the_numbers_tell_whatever_the_names_are(kind: str, seed: int) -> None:
    data = episodes(kind, seed)
    mode = kind.removeprefix("scaled ")
    for names, state in ((("x", "y", "z"), None), (("a", "b", "c"), ("j1", "j2", "j3"))):
        found, (line, *_) = infer_actions(body_of(names, state), data)
        assert found.action_mode == (mode,) * 3
        assert line.startswith(f"actions are {mode}: {', '.join(names)} (")
        measured = state or names
        assert found.action_state == (measured if mode == "absolute" else (None,) * 3)


@settings(max_examples=25)
@given(SEEDS)
def test_deltas_of_a_pose_with_an_absolute_gripper_that_share_their_names(seed: int) -> None:
    rng, data = np.random.default_rng(seed), episodes("delta", seed, width=6)
    data = [
        (np.column_stack([s, (held := np.repeat(rng.integers(0, 2, 6), 10)).astype(float)]), np.column_stack([a, held]))
        for s, a in data
    ]
    found, lines = infer_actions(body_of(POSE), data)
    assert found.action_mode == ("delta",) * 6 + ("absolute",)
    assert found.action_state == (None,) * 6 + ("gripper",) and found.grippers == ("gripper",)
    assert found.rotations == () and any(line.startswith("grippers: gripper") for line in lines)


def test_a_switch_is_held_though_nothing_measures_it() -> None:
    rng, data = np.random.default_rng(0), episodes("scaled delta", 0, width=6)
    data = [
        (np.column_stack([s, rng.uniform(0, 0.04, 60)]), np.column_stack([a, np.repeat([-1.0, 1.0], 30)]))
        for s, a in data
    ]
    found, _ = infer_actions(body_of((*POSE[:6], "effort"), ("a", "b", "c", "d", "e", "f", "g")), data)
    assert (found.action_mode[6], found.action_state[6]) == ("absolute", None)


def test_small_steps_far_from_the_state_are_deltas() -> None:
    # Too few steps to correlate with anything, as in a case that was learned as absolute.
    rng = np.random.default_rng(0)
    data = [(rng.uniform(0.2, 0.6, (6, 2)), rng.uniform(-0.02, 0.02, (6, 2))) for _ in range(3)]
    found, (line,) = infer_actions(body_of(("x", "y")), data)
    assert found.action_mode == ("delta", "delta") and "is outside the range of the state" in line


def test_a_joint_that_hardly_moves_is_what_the_others_are() -> None:
    data = [
        (np.column_stack([s, np.full(60, 0.3)]), np.column_stack([a, np.full(60, 0.7)]))
        for s, a in episodes("absolute", 1)
    ]
    names = ("a", "b", "c", "still")
    found, (line,) = infer_actions(body_of(names), data)
    assert found.action_mode == ("absolute",) * 4 and "still is 0.7 at every step" in line
    still = [(np.zeros((9, 2)), np.zeros((9, 2)))]
    assert infer_actions(body_of(("a", "b")), still)[0].action_mode == ("absolute",) * 2


@pytest.mark.parametrize(("unit", "turn"), [("radians", 2 * np.pi), ("degrees", 360.0)])
def test_an_angle_that_wraps_is_known_by_its_jumps(unit: str, turn: float) -> None:
    rng, data = np.random.default_rng(0), []
    for _ in range(4):
        path = np.cumsum(rng.uniform(0, 0.04 * turn, 80))
        state = (path + turn / 2) % turn - turn / 2
        action = (path + 0.01 * turn + turn / 2) % turn - turn / 2
        data.append((np.column_stack([state, path / turn]), np.column_stack([action, path / turn + 0.01])))
    found, lines = infer_actions(body_of(("heading", "track")), data)
    assert found.action_mode == ("absolute", "absolute")
    assert found.action_turn == (turn, 0.0) and any(line.startswith("angles that wrap") for line in lines)


def pose_episodes(representation: str) -> list[tuple[Any, Any]]:
    rng, made = np.random.default_rng(0), []
    for _ in range(4):
        turn = Spatial.random(None, rng) * Spatial.from_rotvec(smooth(rng, 60, 3, 1.0))
        values = {"euler": turn.as_euler("xyz"), "quaternion": turn.as_quat(), "six": turn.as_matrix()[:, :, :2]}
        rotation = (
            values[representation].reshape(60, -1)
            if representation != "six"
            else (values["six"].transpose(0, 2, 1).reshape(60, 6))
        )
        if representation == "quaternion":  # what an estimator gives may change its sign
            rotation = rotation * rng.choice([-1, 1], (60, 1))
        path = np.column_stack([smooth(rng, 60, 3), rotation])
        made.append((path, np.roll(path, -1, axis=0)))
        made[-1][1][-1] = path[-1]
    return made


@pytest.mark.parametrize(
    ("representation", "names", "expected"),
    [
        ("euler", ("roll", "pitch", "yaw"), "euler_xyz"),
        ("quaternion", ("qx", "qy", "qz", "qw"), "quaternion_xyzw"),
        ("six", tuple(f"r{i}" for i in range(6)), "rotation_6d"),
    ],
)
def test_rotations_of_an_absolute_pose(representation: str, names: tuple[str, ...], expected: str) -> None:
    body, data = body_of(("x", "y", "z", *names)), pose_episodes(representation)
    found, lines = infer_actions(body, data)
    assert found.action_mode == ("absolute",) * len(body.action)
    (rotation,) = found.rotations
    at = tuple(range(3, 3 + len(names)))
    assert (rotation.representation, rotation.action, rotation.state) == (expected, at, at)
    assert any(f"are a rotation, {expected}" in line for line in lines)
    assert infer_actions(body, data, rotations={})[0].rotations == ()


def test_a_quaternion_of_no_known_order_is_asked_about() -> None:
    body, data = body_of(("x", "y", "z", *"pqrs")), pose_episodes("quaternion")
    with pytest.raises(InputError, match="p, q, r, s are a unit quaternion"):
        infer_actions(body, data)
    (rotation,) = infer_actions(body, data, rotations={"quaternion_wxyz": list("pqrs")})[0].rotations
    assert rotation.representation == "quaternion_wxyz"


def random_data(seed: int = 0) -> list[tuple[Any, Any]]:
    rng = np.random.default_rng(seed)
    return [(rng.normal(size=(40, 2)), rng.normal(size=(40, 2))) for _ in range(4)]


def test_what_the_numbers_do_not_tell_is_asked() -> None:
    body = body_of(("a", "gripper"))
    with pytest.raises(InputError, match="set actions=absolute, actions=delta or actions=velocity") as error:
        infer_actions(body, random_data())
    assert "a follows neither the state nor its motion" in str(error.value) and "\n" not in str(error.value)
    for mode in ("absolute", "delta", "velocity", "force"):
        found, (line, *_) = infer_actions(body, random_data(), actions=mode)
        assert found.action_state == (found.state if mode == "absolute" else (None, None))
        assert found.action_mode == (mode, mode) and "as specified" in line
    found, _ = infer_actions(body, random_data(), actions={"a": "delta", "gripper": "absolute"}, grippers=[])
    assert found.action_mode == ("delta", "absolute") and found.grippers == ()


def test_one_word_for_all_leaves_a_grippers_evidence() -> None:
    data = [
        (np.column_stack([s, g]), np.column_stack([a, g]))
        for (s, a), g in zip(episodes("delta", 3), [np.repeat([0.0, 1.0], 30)] * 5, strict=True)
    ]
    found, _ = infer_actions(body_of(("x", "y", "z", "gripper")), data, actions="delta")
    assert found.action_mode == ("delta", "delta", "delta", "absolute")


def test_episodes_that_are_not_finite_are_passed_over() -> None:
    data = episodes("absolute", 0)
    data[1][0][3, 0] = np.nan
    assert infer_actions(body_of(("x", "y", "z")), data)[0].action_mode == ("absolute",) * 3
    with pytest.raises(InputError, match="no episode has finite"):
        infer_actions(body_of(("x", "y", "z")), data[1:2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"actions": "relative"}, "actions are absolute, delta, velocity, force, not 'relative'"),
        ({"actions": {"knee": "delta"}}, "no action 'knee'"),
        ({"grippers": ["claw"]}, "grippers: there is no action 'claw'"),
        ({"rotations": {"euler_xyz": ["a"]}}, "euler_xyz has 3 components, not 1"),
        ({"rotations": {"rpy": ["a", "b"]}}, "'rpy' is no rotation"),
    ],
)
def test_what_cannot_be_said_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=re.escape(message)):
        infer_actions(body_of(("a", "b")), random_data(), **options)


def test_a_gripper_is_no_part_of_a_rotation() -> None:
    names = ("roll", "pitch", "yaw")
    data = episodes("absolute", 0)
    with pytest.raises(InputError, match="yaw cannot be a gripper and part of a rotation"):
        infer_actions(body_of(names), data, "absolute", ["yaw"], {"euler_xyz": names})
    assert infer_actions(body_of(names), data, "absolute", ["yaw"])[0].rotations == ()


def half_turns(longest: float, seed: int = 0) -> list[tuple[Any, Any]]:
    """Rotation vectors of about half a turn: at most pi long, or up to 2 pi where quaternions change their sign."""
    rng, out = np.random.default_rng(seed), []
    for _ in range(3):
        turns = Spatial.from_rotvec(smooth(rng, 120, 3, 0.4)) * Spatial.from_rotvec([2.9, 0.4, 0.0])
        vectors = turns.as_rotvec()
        if longest > np.pi:
            size = np.linalg.norm(vectors, axis=1, keepdims=True)
            vectors = np.where(np.sin(np.arange(120) / 9)[:, None] > 0, vectors, vectors * (1 - 2 * np.pi / size))
        state = np.column_stack([smooth(rng, 120, 3), vectors])
        out.append((state, np.concatenate([state[1:], state[-1:]])))
    assert any((np.abs(np.diff(state, axis=0)).max() > 3) for state, _ in out)
    return out


@pytest.mark.parametrize("longest", [np.pi, 2 * np.pi])
@pytest.mark.parametrize(
    "names",
    [("rx", "ry", "rz"), ("ee_ori[0]", "ee_ori[1]", "ee_ori[2]"), ("roll", "pitch", "yaw"), ("p[3]", "p[4]", "p[5]")],
)
def test_rotation_vectors_that_turn_into_their_opposites_are_one_rotation(
    names: tuple[str, str, str], longest: float
) -> None:
    whole = ("x", "y", "z", *names)
    found, told = infer_actions(body_of(whole, whole), half_turns(longest))
    (rotation,) = found.rotations
    assert (rotation.action, rotation.representation, rotation.state) == ((3, 4, 5), "axis_angle", (3, 4, 5))
    assert found.action_turn == (0.0,) * 6
    assert any("are a rotation, axis_angle" in line for line in told)


@pytest.mark.parametrize("names", [("rx", "ry", "rz"), ("roll", "pitch", "yaw")])
def test_euler_angles_that_wrap_are_no_rotation_vector(names: tuple[str, str, str]) -> None:
    rng, data = np.random.default_rng(0), []
    for _ in range(3):
        turns = Spatial.from_euler("xyz", smooth(rng, 120, 3, 0.4) * (1, 0.2, 0.2) + (np.pi, 0, 0))
        state = np.column_stack([smooth(rng, 120, 3), turns.as_euler("xyz")])
        data.append((state, np.concatenate([state[1:], state[-1:]])))
    whole = ("x", "y", "z", *names)
    found, _ = infer_actions(body_of(whole, whole), data)
    assert [rotation.representation for rotation in found.rotations] == (["euler_xyz"] if "yaw" in names else [])
    assert found.action_turn[3] == (0.0 if "yaw" in names else 2 * np.pi)
