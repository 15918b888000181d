"""Whatever is asked for, what is sent stays within the limits, and can be stopped within them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from control_fakes import BODY, LIMITS
from hydra.utils import instantiate
from hypothesis import given, settings
from hypothesis import strategies as st

from vla.commands.options import compose
from vla.control.safety_filter import SafetyFilter
from vla.embodiment import Embodiment
from vla.envs.arm import JOINTS, LINKS, arm_spec
from vla.envs.ik import ArmIK
from vla.envs.make import make_env
from vla.errors import InputError
from vla.robots.limits import Limits, gripper_box, limits_of

DT = 0.02
LOW, HIGH = np.array(BODY.action_low), np.array(BODY.action_high)
FASTEST, CHANGE = np.array(LIMITS.velocity), np.array(LIMITS.acceleration) * DT
START = np.array([0.1, -0.2, 0.3])


def guard(limits: Limits = LIMITS) -> SafetyFilter:
    made = SafetyFilter(BODY, limits, DT)
    made.start(START)
    return made


@settings(max_examples=20)
@given(st.integers(0, 2**31))
def test_no_target_breaks_a_limit(seed: int) -> None:
    rng, made = np.random.default_rng(seed), guard()
    before, velocity = START, np.zeros(3)
    target: np.ndarray | None = START
    for _ in range(150):
        if rng.random() < 0.2:
            kinds = (None, rng.uniform(LOW - 2, HIGH + 2), rng.uniform(LOW, HIGH), np.full(3, np.nan), np.zeros(2))
            target = kinds[rng.integers(len(kinds))]
        command, _ = made.command(target)
        made.sent()
        now = (command - before) / DT
        assert (np.abs(now) <= FASTEST + 1e-9).all() and (np.abs(now - velocity) <= CHANGE + 1e-9).all()
        assert (command >= LOW - 1e-9).all() and (command <= HIGH + 1e-9).all()
        before, velocity = command, now


def test_reaches_a_target_and_does_not_pass_it() -> None:
    made, target = guard(), np.array([0.9, 1.5, 1.2])
    path = []
    for _ in range(200):
        path.append(made.command(target)[0])
        made.sent()
    np.testing.assert_allclose(path[-1], target, atol=1e-6)
    assert (np.stack(path) <= target + 1e-9).all() and set(made.clamps) <= {"velocity", "acceleration"}


def test_what_is_not_sent_never_was() -> None:
    made = guard()
    first, _ = made.command(HIGH)
    again, _ = made.command(HIGH)
    np.testing.assert_array_equal(first, again)


def test_stops_before_it_leaves_the_workspace() -> None:
    made = guard(replace(LIMITS, workspace=lambda joints: bool(joints[0] <= 0.5)))
    for _ in range(100):
        command, _ = made.command(np.array([0.9, 0.0, 0.3]))
        made.sent()
        assert command[0] <= 0.5
    assert made.clamps["workspace"] and made.at_rest
    with pytest.raises(InputError, match="workspace"):
        made.start(np.array([0.6, 0.0, 0.3]))


CORNERS = {"low": [0.1, -0.12, 0.02], "high": [0.3, 0.12, 0.2]}
RANGES = np.array([next(link.range for link in LINKS if link.joint == joint) for joint in JOINTS])
ARM = Embodiment("so101", (), JOINTS, JOINTS, tuple(RANGES[:, 0].tolist()), tuple(RANGES[:, 1].tolist()), 10.0)
REST = np.array([0.0, -0.6, 0.6, 1.15, 0.0, 0.5])


@pytest.mark.parametrize("arms", [1, 2])
@settings(max_examples=10)
@given(st.integers(0, 2**31))
def test_the_gripper_stays_in_its_box(arms: int, seed: int) -> None:
    rng, ik, fastest, change = np.random.default_rng(seed), ArmIK(arm_spec().compile()), 2.0, 15.0 * DT
    names = tuple(f"{arm} {joint}" for arm in range(arms) for joint in JOINTS)
    body = Embodiment("arms", (), names, names, ARM.action_low * arms, ARM.action_high * arms, ARM.control_hz)
    limits = Limits((fastest,) * 6 * arms, (15.0,) * 6 * arms, gripper_box(CORNERS))
    made, low, high = SafetyFilter(body, limits, DT), np.array(body.action_low), np.array(body.action_high)
    made.start(target := np.tile(REST, arms))
    before, velocity = target, np.zeros(6 * arms)
    for _ in range(120):
        if rng.random() < 0.1:
            target = rng.uniform(low, high) if rng.random() < 0.5 else before + rng.uniform(-0.3, 0.3, 6 * arms)
        command, _ = made.command(None if rng.random() < 0.02 else target)
        if rng.random() < 0.05:
            made.reset_velocity()
            velocity = np.zeros(6 * arms)
            continue
        made.sent()
        now = (command - before) / DT
        assert (np.abs(now) <= fastest + 1e-9).all() and (np.abs(now - velocity) <= change + 1e-9).all()
        assert (command >= low - 1e-9).all() and (command <= high + 1e-9).all()
        for joints in command.reshape(-1, 6):
            assert (ik.tip(joints) >= CORNERS["low"]).all() and (ik.tip(joints) <= CORNERS["high"]).all()
        before, velocity = command, now


def test_the_gripper_comes_to_the_edge_and_back() -> None:
    ik = ArmIK(arm_spec().compile())
    made = SafetyFilter(ARM, Limits((2.0,) * 6, (15.0,) * 6, gripper_box(CORNERS)), DT)
    made.start(REST)
    for target, count in (([1.0, *REST[1:]], 100), (REST, 100)):
        for _ in range(count):
            made.command(np.array(target))
            made.sent()
        if target is not REST:
            assert abs(np.abs(ik.tip(made.position)[1]) - 0.12) < 1e-3 and made.clamps["workspace"]
    np.testing.assert_allclose(made.position, REST, atol=1e-6)


@pytest.mark.parametrize(
    "box",
    [
        {},
        {"low": [0, 0, 0]},
        {"low": [0, 0, 1], "high": [1, 1, 1]},
        {"low": [0, 0], "high": [1, 1]},
        {"low": [0] * 3, "high": [1] * 3, "mid": []},
    ],
)
def test_a_box_has_two_corners(box: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="workspace"):
        gripper_box(box)


def test_simulation_has_the_limits_of_the_simulated_robot() -> None:
    robot = instantiate(compose("deploy", ["policy=hold"]).robot, _convert_="all")
    with robot:
        assert robot.limits == limits_of(make_env("pick", images=False))


@pytest.mark.parametrize("velocity", [(1.0, 1.0), (1.0, 0.0, 1.0), (1.0, np.nan, 1.0)])
def test_limits_must_be_whole_and_above_zero(velocity: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match="velocity"):
        SafetyFilter(BODY, replace(LIMITS, velocity=velocity), DT)


@pytest.mark.parametrize(("mode", "of_speed"), [("delta", DT), ("velocity", 1.0)])
@settings(max_examples=20)
@given(seed=st.integers(0, 2**31))
def test_a_rate_keeps_the_limits_of_speed_and_brakes(mode: str, of_speed: float, seed: int) -> None:
    rng, body = np.random.default_rng(seed), replace(BODY, action_mode=("absolute", mode, mode))
    made = SafetyFilter(body, LIMITS, DT)
    made.start(START)
    velocity = np.zeros(2)
    for _ in range(60):
        target = None if rng.random() < 0.2 else rng.uniform(-2, 2, 3)
        command, _ = made.command(target)
        made.sent()
        now = command[1:] / of_speed
        assert (np.abs(now) <= FASTEST[1:] + 1e-9).all() and (np.abs(now - velocity) <= CHANGE[1:] + 1e-9).all()
        velocity = now
    while not made.at_rest:
        made.command(None)
        made.sent()
    np.testing.assert_array_equal(made.command(None)[0][1:], [0.0, 0.0])


def test_a_rate_within_its_limits_is_passed_on_to_the_bit_and_not_held() -> None:
    body = replace(BODY, action_mode=("absolute", "absolute", "delta"))
    made = SafetyFilter(body, LIMITS, 1 / body.control_hz)
    made.start(np.array([0.1, -0.2, 0.0]))
    assert made.command(np.array([0.1, -0.2, 0.21]))[0][2] == 0.21
    made.sent()
    assert made.command(None)[0][2] == 0.0


def test_a_force_has_its_range_alone() -> None:
    made = SafetyFilter(replace(BODY, action_mode=("absolute", "absolute", "force")), LIMITS, DT)
    made.start(START)
    assert made.command(np.array([0.1, -0.2, 7.0]))[0][2] == BODY.action_high[2]
    made.sent()
    assert made.at_rest and made.command(None)[0][2] == 0.0


def test_an_angle_that_wraps_goes_the_shorter_way() -> None:
    turn = Embodiment("yaw", (), ("yaw [rad]",), ("yaw [rad]",), (-np.pi,), (np.pi,), 10.0, action_turn=(2 * np.pi,))
    made = SafetyFilter(turn, Limits((2.0,), (20.0,)), DT)
    made.start(np.array([3.0]))
    path = []
    for _ in range(100):
        path.append(made.command(np.array([-3.0]))[0][0])
        made.sent()
    assert path[-1] == -3.0 and min(abs(angle) for angle in path) > 2.9
