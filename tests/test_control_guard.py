"""Whatever is asked for, what is sent stays within the limits, and can be stopped within them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from control_fakes import BODY, LIMITS
from hypothesis import given, settings
from hypothesis import strategies as st

from vla.control.guard import Guard
from vla.control.limits import Limits
from vla.errors import InputError

DT = 0.02
LOW, HIGH = np.array(BODY.action_low), np.array(BODY.action_high)
FASTEST, CHANGE = np.array(LIMITS.velocity), np.array(LIMITS.acceleration) * DT
START = np.array([0.1, -0.2, 0.3])


def guard(limits: Limits = LIMITS) -> Guard:
    made = Guard(BODY, limits, DT)
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


@pytest.mark.parametrize("velocity", [(1.0, 1.0), (1.0, 0.0, 1.0), (1.0, np.nan, 1.0)])
def test_limits_must_be_whole_and_above_zero(velocity: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match="velocity"):
        Guard(BODY, replace(LIMITS, velocity=velocity), DT)


def test_a_step_is_passed_on_and_not_held() -> None:
    body = replace(BODY, state=("shoulder [rad]", "elbow [rad]"))
    made = Guard(body, LIMITS, 1 / body.control_hz)
    made.start(np.array([0.1, -0.2, 0.0]))
    assert made.command(np.array([0.1, -0.2, 1.2]))[0][2] == 1.2
    made.sent()
    assert made.command(None)[0][2] == 0.0
