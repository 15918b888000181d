"""The control loop on a virtual clock: rate, chunk boundaries, delays and gaps."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from control_fakes import (
    BODY,
    HORIZON,
    FakeRobot,
    VirtualClock,
    VirtualInference,
    check_received,
    follow_wave,
    wave,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from vla.control.clock import WallClock
from vla.control.config import LoopConfig
from vla.control.inference import Request
from vla.control.loop import ControlLoop
from vla.control.stats import ControlStats
from vla.control.stop import EmergencyStop
from vla.control.tick import Tick
from vla.errors import InputError
from vla.types import ActionChunk

EXECUTIONS = ("naive", "chunked", "rtc", "ensemble")


def drive(
    seconds: float = 6.0,
    policy: Callable[[Request], ActionChunk | None] = follow_wave,
    delay: Callable[[], float] = lambda: 0.05,
    script: Callable[[str], None] = lambda call: None,
    clock: VirtualClock | None = None,
    **config: Any,
) -> tuple[ControlStats, FakeRobot, VirtualInference, list[Tick]]:
    clock = clock or VirtualClock()
    robot, inference, ticks = FakeRobot(clock, script), VirtualInference(clock, policy, delay), list[Tick]()
    chosen = LoopConfig(**config)
    loop = ControlLoop(robot, inference, chosen, clock, stop=EmergencyStop(), watch=ticks.append)
    stats = loop.run("wave", seconds)
    check_received(robot, 1 / chosen.hz)
    return stats, robot, inference, ticks


def test_runs_at_its_rate_and_ends_at_rest() -> None:
    stats, robot, _, ticks = drive()
    assert stats.reason == "done" and stats.missed == 0 and stats.faults == 0
    assert stats.rate == pytest.approx(50, rel=0.01)
    assert json.loads(json.dumps(stats.to_dict()))["ticks"] == stats.ticks == len(ticks)
    assert robot.held is not None and np.array_equal(robot.held, robot.received[-1][1]) and not robot.connected
    assert {tick.source for tick in ticks} == {"chunk", "hold", "brake"}


def test_torque_is_disabled_at_the_end_if_set() -> None:
    _, robot, _, _ = drive(1.0, end="disable_torque")
    assert robot.torque_disabled and robot.held is None


@pytest.mark.parametrize("execution", EXECUTIONS)
@settings(max_examples=2)
@given(delays=st.lists(st.floats(0.0, 2.5), min_size=1, max_size=6), late=st.integers(0, 2**31))
def test_no_delay_and_no_jitter_makes_a_jump(execution: str, delays: list[float], late: int) -> None:
    rng, clock = np.random.default_rng(late), VirtualClock()

    def slow(call: str) -> None:
        clock.time += float(rng.exponential(0.003)) * (rng.random() < 0.3)

    def wild(request: Request) -> ActionChunk:
        low, high = np.array(BODY.action_low), np.array(BODY.action_high)
        return ActionChunk(rng.uniform(low - 1, high + 1, (HORIZON, 3)), request.observation.time, 0.1)

    for policy in (follow_wave, wild):
        drive(2.5, policy, lambda: float(rng.choice(delays)), slow, clock, execution=execution)


@pytest.mark.parametrize("execution", ["chunked", "rtc", "ensemble"])
@settings(max_examples=3)
@given(delays=st.lists(st.floats(0.0, 0.75), min_size=3, max_size=3), n_action_steps=st.integers(1, 8))
def test_never_starves_while_two_delays_fit_the_horizon(
    execution: str, delays: list[float], n_action_steps: int
) -> None:
    turn = iter(delays * 1000)
    _, _, _, ticks = drive(4.0, delay=lambda: next(turn), execution=execution, n_action_steps=n_action_steps)
    sources = [tick.source for tick in ticks if tick.source != "brake"]
    assert "hold" not in sources[sources.index("chunk") :]


def test_a_late_chunk_begins_at_the_present_step() -> None:
    _, _, inference, ticks = drive(4.0, delay=lambda: 0.31, execution="chunked", n_action_steps=6)
    done = [tick for tick in ticks if tick.source == "chunk"]
    ends = [tick.desired for tick in done[4::5]]
    for step, end in enumerate(ends):
        assert end is not None
        np.testing.assert_allclose(end, wave(np.array(float(step))), atol=1e-9)
    assert len(inference.requests) > 3


def test_a_chunk_dies_of_age_and_the_arm_holds() -> None:
    calls = iter([0.05, *[1.9] * 9])
    _, _, _, ticks = drive(2.0, delay=lambda: next(calls), max_observation_age_s=0.5, n_action_steps=1)
    assert all(t.source != "chunk" for t in ticks if t.time > ticks[0].time + 0.65)
    resting = [t.sent for t in ticks if t.time > ticks[0].time + 1.2 and t.sent is not None]
    assert np.ptp(np.stack(resting), axis=0).max() == 0


def test_missed_ticks_are_skipped_and_counted() -> None:
    clock, calls = VirtualClock(), iter(range(10**6))

    def slow(call: str) -> None:
        clock.time += 0.13 if next(calls) == 100 else 0.0

    stats, _, _, ticks = drive(3.0, script=slow, clock=clock)
    assert stats.missed == 6
    assert len({tick.scheduled for tick in ticks}) == len(ticks) == stats.ticks


def test_a_rate_that_is_no_multiple_of_the_policy_s_is_refused() -> None:
    with pytest.raises(InputError, match="multiple"):
        drive(hz=25.0)


@pytest.mark.parametrize("wrong", [{"execution": "magic"}, {"n_action_steps": 0}])
def test_wrong_settings_move_nothing(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        drive(**wrong)


def test_the_wall_clock_never_wakes_early() -> None:
    clock = WallClock()
    moment = clock.now() + clock.SPIN / 2
    clock.sleep_until(moment)
    assert clock.now() >= moment
