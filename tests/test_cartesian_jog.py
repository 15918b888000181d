"""Jogs from any pose: which way the fingertips go, and what is said where they cannot."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from vla.envs.make import make_env
from vla.envs.so101 import SO101Env
from vla.robots.teleoperators.cartesian_jog import (
    JOINT_LEAD,
    LEAD,
    LOWEST,
    PATIENCE,
    ROLL,
    CartesianJog,
    fingertip_solver,
)
from vla.robots.teleoperators.operator import Operator
from vla.robots.teleoperators.teleoperator import STEP, TURN, WORDS, Jog
from vla.types import Observation

ENV = make_env("pick", images=False).unwrapped
assert isinstance(ENV, SO101Env)
BODY = ENV.embodiment
ENV.close()
SOLVER = fingertip_solver()
LOW, HIGH = np.array(BODY.action_low), np.array(BODY.action_high)
MOVES = ("x+", "x-", "y+", "y-", "z+", "z-")
POSES = {
    "rest": (0.0, -1.745, 1.69, 1.2, 0.0, 0.0),
    "home": (-0.08, -0.92, 0.55, 1.52, -1.6, 0.5),
    "forward": (0.0, 0.6, -0.5, 0.3, -1.57, 0.3),
    "side": (1.5, -0.9, 0.55, 1.5, -1.6, 0.5),
    "high": (0.0, -0.6, -0.6, 0.2, 0.0, 0.0),
}


def tip(joints: np.ndarray) -> np.ndarray:
    position: np.ndarray = SOLVER.forward(joints[:5])[0, :3]
    return position


class Arm:
    """An arm that goes where it is commanded, but for `sag` [rad]: what is jogged, and what is said of it."""

    def __init__(self, joints: np.ndarray, sag: float = 0.0) -> None:
        self.said: list[str] = []
        self.sag = sag * np.eye(6)[1]
        self.joints = joints - self.sag
        self.jogging = CartesianJog(SOLVER, BODY, joints, self.said.append)

    def jog(self, *words: str) -> Arm:
        for word in words:
            target = self.jogging.act(WORDS[word], self.joints)
            assert (target >= LOW).all() and (target <= HIGH).all()
            self.joints = target - self.sag
        return self

    @property
    def tip(self) -> np.ndarray:
        return tip(self.joints)


joints = st.tuples(*(st.floats(low, high) for low, high in zip(LOW, HIGH, strict=True))).map(np.array)


@given(joints, st.sampled_from([*MOVES, "turn+", "turn-", "open", "close"]))
def test_from_any_pose_a_jog_moves_the_arm_or_says_why_not(start: np.ndarray, word: str) -> None:
    arm, jog = Arm(start), WORDS[word]
    arm.jog(word)
    if arm.said:
        assert len(arm.said) == 1
    elif jog.close is not None:
        assert (arm.joints - start)[5] * (-1 if jog.close else 1) > 0.02
    elif jog.turn:
        assert (arm.joints - start)[ROLL] / jog.turn >= 0.5
    else:
        assert (arm.tip - tip(start)) @ jog.delta >= STEP**2 / 2


@given(joints, st.sampled_from([*MOVES, "turn+", "turn-"]))
def test_no_reason_stops_an_arm_that_has_room(start: np.ndarray, word: str) -> None:
    start = start * 0.8
    jacobian = np.stack([tip(start + 1e-4 * one) - tip(start) for one in np.eye(6)[:4]]) / 1e-4
    assume(np.linalg.svd(jacobian, compute_uv=False)[-1] > 0.05 and tip(start)[2] > LOWEST + STEP)
    arm = Arm(start).jog(word)
    assert not arm.said
    np.testing.assert_allclose(arm.tip - tip(start), WORDS[word].delta, atol=5e-4)


UNREACHED = {
    ("home", "x-"): "wrist_flex at the limit",
    ("rest", "z-"): "below 1 cm above the table",
    ("home", "z-"): "below 1 cm above the table",
    ("side", "z-"): "below 1 cm above the table",
    ("forward", "z-"): "below 1 cm above the table",
    ("forward", "x+"): "out of reach",
    ("side", "x-"): "shoulder_pan at the limit",
    ("side", "y+"): "wrist_flex at the limit",
    ("high", "x+"): "out of reach",
    ("high", "z+"): "out of reach",
}


@pytest.mark.parametrize("word", MOVES)
@pytest.mark.parametrize("pose", POSES)
def test_steps_add_up_as_far_as_the_arm_reaches(pose: str, word: str) -> None:
    start = np.array(POSES[pose])
    if tip(start)[2] < LOWEST:
        start = Arm(start).jog("z+", "z+").joints
    arm = Arm(start).jog(*[word] * 12)
    if (pose, word) in UNREACHED:
        (said,) = arm.said
        assert UNREACHED[pose, word] in said
    else:
        assert not arm.said
        np.testing.assert_allclose(arm.tip - tip(start), 12 * np.array(WORDS[word].delta), atol=1e-3)


@pytest.mark.parametrize("pose", POSES)
def test_the_jaws_turn_in_place_until_the_joint_ends(pose: str) -> None:
    arm = Arm(np.array(POSES[pose]))
    if arm.tip[2] < LOWEST:
        arm.jog("z+", "z+")
    before = arm.tip
    arm.jog(*["turn+"] * 60)
    assert arm.joints[ROLL] > HIGH[ROLL] - TURN / 2 - 1e-9
    np.testing.assert_allclose(arm.tip, before, atol=5e-3)
    assert arm.said == ["the jaws do not turn further: wrist_roll is at its limit"]


def test_what_sags_is_not_lost() -> None:
    start = np.array(POSES["home"])
    arm = Arm(start, sag=0.03)
    arm.jog(*["wait"] * 10, *["x+"] * 5, *["wait"] * 10, *["x+"] * 5, *["wait"] * 10)
    np.testing.assert_allclose(tip(arm.joints + arm.sag) - tip(start), [0.1, 0, 0], atol=1e-3)


def test_the_target_of_a_blocked_arm_stays_near_and_comes_back() -> None:
    start, said = np.array(POSES["home"]), list[str]()
    jogging = CartesianJog(SOLVER, BODY, start, said.append)
    patience = round(PATIENCE * BODY.control_hz)
    ahead = []
    for word in ["wait"] * 20 + ["x+"] * 30:
        target = jogging.act(WORDS[word], start)
        ahead.append(float(np.linalg.norm(tip(target) - tip(start))))
        assert np.abs(target - start)[:5].max() <= JOINT_LEAD + 1e-9
        assert np.linalg.norm(jogging.position - tip(start)) <= LEAD + 1e-9
    pressed = "".join("." if each < 1e-6 else "p" for each in ahead)
    assert max(map(len, pressed.split("."))) <= patience + 1 and len(pressed.split(".p")) > 3
    assert said[0] == "the arm is blocked: its target is taken back to where it is"
    assert len(said) == 1


@pytest.mark.parametrize("word", ["z-", "turn+"])
def test_a_single_jog_into_an_obstacle_is_taken_back(word: str) -> None:
    start, said = np.array(POSES["forward"]), list[str]()
    jogging = CartesianJog(SOLVER, BODY, start, said.append)
    targets = [jogging.act(WORDS[word], start) for word in ["wait"] * 9 + [word] + ["wait"] * 9]
    assert (targets[9] != start).any()
    np.testing.assert_allclose(targets[-1], start)
    assert said == ["the arm is blocked: its target is taken back to where it is"]


def test_an_arm_that_is_far_behind_is_waited_for_and_can_be_jogged_back() -> None:
    start, said = np.array(POSES["home"]), list[str]()
    jogging = CartesianJog(SOLVER, BODY, start, said.append)
    crawl = np.array([0.01, 0, 0, 0, 0, 0])
    for i in range(9):
        jogging.act(WORDS["y-"], start + i * crawl)
    (reason,) = said
    assert "does not move right: 6 cm or 0.6 rad behind its target" in reason
    before = jogging.position
    jogging.act(WORDS["y+"], start + 9 * crawl)
    np.testing.assert_allclose(jogging.position - before, [0, STEP, 0])


def test_a_reason_is_said_again_only_after_another_or_a_while() -> None:
    arm = Arm(np.array(POSES["rest"])).jog("z+", "z+", "z+")
    down = "the fingertips do not go below 1 cm above the table"
    arm.jog(*["z-"] * 40)
    assert arm.said == [down]
    arm.jog("z+", "z-", "z-")
    assert arm.said == [down]
    arm.jog("open", "open", "open", "open", "open")
    assert arm.said == [down, "the gripper is open"]
    arm.jog("z-", *["wait"] * 12, "z-", "z-")
    assert arm.said == [down, "the gripper is open", down, down]


def test_a_gripper_that_holds_something_says_so() -> None:
    start, said = np.array(POSES["home"]), list[str]()
    jogging = CartesianJog(SOLVER, BODY, start, said.append)
    for _ in range(20):
        target = jogging.act(WORDS["close"], start)
    assert target[5] < start[5] and said == ["the gripper does not get closed: something holds it"]
    wide = np.append(start[:5], 1.4)
    assert CartesianJog(SOLVER, BODY, wide, said.append).act(WORDS["open"], wide)[5] == 1.4
    assert said[-1] == "the gripper is open"


def test_a_narrower_calibrated_range_is_kept() -> None:
    low, high = LOW.copy(), HIGH.copy()
    low[0], high[0] = -0.3, 0.3
    body = replace(BODY, action_low=tuple(low.tolist()), action_high=tuple(high.tolist()))
    joints, said = np.array(POSES["home"]), list[str]()
    jogging = CartesianJog(SOLVER, body, joints, said.append)
    for _ in range(15):
        joints = jogging.act(Jog((0.0, STEP, 0.0)), joints)
    assert joints[0] == pytest.approx(-0.3, abs=0.05) and joints[0] >= -0.3
    assert said == ["the arm does not move left: out of reach, shoulder_pan at the limit"]


class Six:
    """A device that says six times to go on, then to wait."""

    count = 0

    def read(self) -> Jog:
        self.count += 1
        return WORDS["x+" if self.count <= 6 else "wait"]


@pytest.mark.parametrize("hz", [5.0, 10.0, 30.0, 50.0])
def test_jogs_are_as_fast_at_every_rate(hz: float) -> None:
    """At most ten commands a second, on an arm whose policy has thirty steps too."""
    operator = Operator(Six(), replace(BODY, control_hz=hz), SOLVER, print)
    state = np.array(POSES["home"])
    begun, path = tip(state), []
    for step in range(round(1.5 * hz)):
        chunk = operator.predict(Observation({}, state, "", step / hz))
        state = state if chunk is None else chunk.actions[0]  # an arm that is there at once
        path.append(tip(state)[0] - begun[0])
    assert path[-1] == pytest.approx(0.06, abs=0.005)
    assert np.diff(path).max() * hz < 0.13  # [m/s]
