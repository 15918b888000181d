"""How runs of the control loop end and what they report, on the virtual clock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from control_fakes import BODY, HORIZON, LIMITS, FakeRobot, VirtualClock, VirtualInference, check_received, follow_wave
from hypothesis import given, settings
from hypothesis import strategies as st

from vla.common.start_region import StartRegion
from vla.control.camera_stats import CameraTally
from vla.control.config import LoopConfig
from vla.control.events import MAX_EVENTS, EventLog
from vla.control.inference import Request
from vla.control.loop import ControlLoop
from vla.control.stats import ControlStats
from vla.control.stop import EmergencyStop, stop_file, stop_gamepad
from vla.errors import InputError
from vla.policies.data_summary import DataSummary
from vla.robots.robot import RobotFault
from vla.types import ActionChunk, Observation

REGION = StartRegion((-0.6, -1.0, 0.9), (-0.5, -0.9, 1.0), (-0.4, -0.8, 1.1))
DATA = DataSummary(((-0.8, -1.5, 0.0), (0.8, 1.5, 1.5)), None, REGION)


def run(
    robot: FakeRobot,
    policy: Callable[[Request], ActionChunk | None] = follow_wave,
    seconds: float = 3.0,
    config: LoopConfig | None = None,
    **options: Any,
) -> ControlStats:
    inference = VirtualInference(robot.clock, policy)
    options = {"stop": EmergencyStop(), **options}
    return ControlLoop(robot, inference, config or LoopConfig(), robot.clock, **options).run("wave", seconds)


def warnings_of(stats: ControlStats) -> list[str]:
    return [event.what for event in stats.events if event.warning]


class Blinded(FakeRobot):
    """Its camera gives no image from `blind_from` to `blind_until` [s on the clock]."""

    blind_from, blind_until = 101.0, np.inf
    transient = True

    def observe(self, instruction: str) -> Observation:
        if self.blind_from <= self.clock.time < self.blind_until:
            self.clock.time += 0.001
            raise RobotFault("camera wrist: no frame", transient=self.transient, camera="wrist")
        return super().observe(instruction)


@pytest.mark.parametrize("transient", [True, False])
@pytest.mark.parametrize(("policy_hz", "loop_hz"), [(10, 10), (10, 50), (30, 60), (50, 50)])
def test_a_dead_camera_ends_the_run_in_the_same_time_at_every_ratio(
    policy_hz: float, loop_hz: float, transient: bool
) -> None:
    robot = Blinded(VirtualClock(), embodiment=replace(BODY, control_hz=float(policy_hz)))
    robot.transient = transient
    stats = run(robot, seconds=10.0, config=LoopConfig(hz=float(loop_hz)))
    assert stats.reason == "robot: camera wrist: no frame" and stats.outcome == "robot"
    assert 0.9 <= robot.clock.time - robot.blind_from <= 1.5  # braking included
    assert "robot: camera wrist: no frame" in warnings_of(stats)


def test_a_camera_that_comes_back_in_time_ends_nothing() -> None:
    robot = Blinded(VirtualClock())
    robot.blind_until = 101.8
    assert run(robot).reason == "done"


def test_the_arm_holds_for_as_long_as_a_camera_is_dead_where_it_is_told_to() -> None:
    robot = Blinded(VirtualClock())
    robot.transient = False
    stats = run(robot, seconds=6.0, config=LoopConfig(camera_timeout=None, max_observation_age_s=1.0))
    assert stats.reason == "done" and stats.holds > 150
    check_received(robot, 1 / 50)


def test_invalid_answers_one_after_the_other_end_the_run() -> None:
    robot = FakeRobot(VirtualClock())
    stats = run(robot, lambda request: None, config=LoopConfig(invalid=4))
    assert stats.outcome == "policy" and stats.reason == "4 consecutive invalid answers: no valid chunk"
    assert stats.invalid == 4 and "invalid answer: no valid chunk" in warnings_of(stats)
    turn = iter([None, None, None, True] * 1000)
    passing = run(
        FakeRobot(VirtualClock()),
        lambda request: follow_wave(request) if next(turn) else None,
        config=LoopConfig(invalid=4),
    )
    assert passing.outcome == "done" and passing.invalid >= 3


def test_outcomes_say_who_ended_the_run() -> None:
    assert run(FakeRobot(VirtualClock())).outcome == "done"
    met = run(FakeRobot(VirtualClock()), finished=lambda: "the task is met")
    assert (met.outcome, met.reason) == ("done", "the task is met")
    stop = EmergencyStop()
    stop.trip("key")
    assert run(FakeRobot(VirtualClock()), stop=stop).outcome == "stopped"

    def broken(call: str) -> None:
        if call == "command":
            raise RobotFault("overload", transient=False)

    assert run(FakeRobot(VirtualClock(), broken)).outcome == "robot"
    robot = FakeRobot(VirtualClock())
    dead = VirtualInference(robot.clock, follow_wave, dead=True)
    assert ControlLoop(robot, dead, LoopConfig(), robot.clock, stop=EmergencyStop()).run("x", 1.0).outcome == "policy"


def test_the_arm_moves_slowly_to_the_demonstrations_start_before_the_policy_acts() -> None:
    robot = FakeRobot(VirtualClock(), position=np.array([0.9, 1.8, 1.0]))
    asked: list[Request] = []

    def policy(request: Request) -> ActionChunk:
        asked.append(request)
        return ActionChunk(np.tile(robot.position, (HORIZON, 1)), request.observation.time, 0.1)

    stats = run(robot, policy, data=DATA)
    np.testing.assert_allclose(asked[0].observation.state, [-0.4, -0.8, 1.0], atol=0.01)
    path = np.stack([np.array([0.9, 1.8, 1.0]), *(place for _, place in robot.received)])
    assert (np.abs(np.diff(path, axis=0)) * 50 <= 0.25 * np.array(LIMITS.velocity) + 1e-9).all()
    (said,) = warnings_of(stats)
    assert said.startswith("moving slowly to the start pose: shoulder [rad] by -1.3, elbow")
    assert stats.reason == "done" and stats.seconds > 3.0 + 2.6 / 0.75  # the policy has all of its time


def test_where_it_is_not_to_be_moved_the_distance_is_reported() -> None:
    robot = FakeRobot(VirtualClock(), position=np.array([0.9, 1.8, 1.0]))
    stay = lambda request: ActionChunk(np.tile(robot.position, (HORIZON, 1)), request.observation.time, 0.1)  # noqa: E731
    stats = run(robot, stay, config=LoopConfig(move_to_start=False), data=DATA)
    np.testing.assert_allclose(robot.position, [0.9, 1.8, 1.0])
    assert [said.split(":")[0] for said in warnings_of(stats)] == [
        "the arm is away from the start pose",
        "shoulder [rad] is 0.9, outside the training data (-0.8 to 0.8)",
        "elbow [rad] is 1.8, outside the training data (-1.5 to 1.5)",
    ]


@settings(max_examples=15)
@given(place=st.tuples(st.floats(-1, 1), st.floats(-2, 2), st.floats(0, 1.5)), slow=st.floats(0.05, 1.0))
def test_the_way_to_the_start_keeps_all_limits_from_anywhere(place: tuple[float, float, float], slow: float) -> None:
    robot = FakeRobot(VirtualClock(), position=np.array(place))
    stats = run(robot, lambda request: None, 0.2, LoopConfig(slow=slow), data=DATA)
    robot.received.insert(0, (robot.received[0][0] - 1 / 50, np.array(place)))
    check_received(robot, 1 / 50)
    low, high = np.array(REGION.low), np.array(REGION.high)
    assert stats.reason == "done"
    assert ((robot.position >= low - 0.03) & (robot.position <= high + 0.03)).all()


@pytest.mark.parametrize("stopped", [False, True])
def test_a_run_that_ends_as_planned_goes_home_and_no_other(stopped: bool) -> None:
    robot, stop = FakeRobot(VirtualClock(), position=np.array(REGION.median)), EmergencyStop()
    if stopped:
        robot.script = lambda call: stop.trip("key") if robot.clock.time > 101.5 else None
    stats = run(robot, stop=stop, data=DATA, config=LoopConfig(end="home"))
    check_received(robot, 1 / 50)
    assert robot.held is not None
    if stopped:
        assert stats.outcome == "stopped" and np.abs(robot.position - REGION.median).max() > 0.1
    else:
        assert (stats.reason, stats.outcome) == ("done", "done")
        np.testing.assert_allclose(robot.held, REGION.median, atol=1e-6)


def test_a_stop_on_the_way_home_stops_it() -> None:
    robot, stop = FakeRobot(VirtualClock(), position=np.array(REGION.median)), EmergencyStop()
    robot.script = lambda call: stop.trip("key") if robot.clock.time > 103.2 else None
    stats = run(robot, stop=stop, data=DATA, config=LoopConfig(end="home"))
    assert stats.reason == "key" and np.abs(robot.position - REGION.median).max() > 0.05
    check_received(robot, 1 / 50)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"end": "fall"}, "hold, home, disable_torque"), ({"slow": 0.0}, "loop.slow"), ({"invalid": 0}, "loop.invalid")]
    + [({"camera_timeout": -1.0}, "loop.camera_timeout")],
)
def test_settings_that_are_none_are_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        LoopConfig(**options)


def test_the_earlier_name_of_disable_torque() -> None:
    assert LoopConfig(end="relax") == LoopConfig(end="disable_torque")


def test_a_file_and_a_gamepad_stop_the_arm(tmp_path: Path) -> None:
    from contextlib import ExitStack

    file = tmp_path / "stop"
    source = stop_file(str(file))
    assert source() is None
    file.touch()
    assert source() == f"emergency stop: {file}"
    with pytest.raises(InputError, match="exists already"):
        stop_file(str(file))
    pad = tmp_path / "js0"
    pad.write_bytes(b"")
    with ExitStack() as stack:
        pressed = stop_gamepad(str(pad), stack)
        assert pressed() is None
        with open(pad, "ab") as device:
            device.write(b"\0\0\0\0\x40\x00\x02\x00")  # a stick
        assert pressed() is None
        with open(pad, "ab") as device:
            device.write(b"\0\0\0\0\x01\x00\x01\x00")  # a button goes down
        assert pressed() == "emergency stop: gamepad"
        with pytest.raises(InputError, match="no gamepad"):
            stop_gamepad(str(tmp_path / "js1"), stack)


def test_the_same_event_is_counted_while_it_goes_on() -> None:
    log = EventLog()
    for time in (0.0, 0.5, 1.4, 3.0):
        log.add(time, "clamped: velocity")
    log.add(3.1, "robot: mute", warning=True)
    assert [(e.time, e.count, e.last) for e in log.entries] == [(0.0, 3, 1.4), (3.0, 1, 3.0), (3.1, 1, 3.1)]
    assert [event.what for event in log.pending_warnings] == ["robot: mute"]
    again = EventLog(("robot: mute",))
    again.add(0.1, "robot: mute", warning=True)
    assert len(again.entries) == 1 and not again.pending_warnings
    for number in range(MAX_EVENTS):
        log.add(4.0, f"fault {number}")
    assert len(log.entries) == MAX_EVENTS and log.left_out == 3


def test_ages_repeated_and_dropped_images_are_counted() -> None:
    """Of a camera of 20 Hz at observations of 10 Hz: one image shown twice, and one that never came."""
    tally = CameraTally()
    for seen, captured in [(0.1, 0.08), (0.2, 0.18), (0.3, 0.28), (0.4, 0.28), (0.5, 0.48), (0.6, 0.58), (0.7, 0.68)]:
        tally.add(Observation({}, np.zeros(1), "", seen, captured={"wrist": captured}), seen)
    (wrist,) = tally.stats().values()
    assert (wrist.repeated, wrist.dropped) == (1, 1)
    assert wrist.age.p50 == pytest.approx(0.02) and wrist.age.max == pytest.approx(0.12)
