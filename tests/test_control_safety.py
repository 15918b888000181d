"""What the control loop does of itself when the arm is not where it should be, on the virtual clock."""

from __future__ import annotations

import os
import pty
import signal
import sys
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
from control_fakes import BODY, HORIZON, LIMITS, FakeRobot, VirtualClock, VirtualInference, check_received, follow_wave
from jaxtyping import Float

from vla.control.config import LoopConfig
from vla.control.inference import Request
from vla.control.loop import ControlLoop
from vla.control.stop import SIGNALS, EmergencyStop, operator
from vla.types import ActionChunk


@pytest.mark.parametrize(("policy_hz", "loop_hz"), [(10, 10), (10, 20), (10, 50), (30, 30), (30, 60), (50, 50)])
def test_a_stuck_joint_ends_the_run_in_the_same_time_at_every_ratio(policy_hz: float, loop_hz: float) -> None:
    clock = VirtualClock()
    robot = FakeRobot(clock, embodiment=replace(BODY, control_hz=float(policy_hz)))
    stuck_at = 101.0

    def script(call: str) -> None:
        if clock.time >= stuck_at:
            robot.corrupt = lambda state: np.array([-0.9, *state[1:]])

    def stay(request: Request) -> ActionChunk:
        return ActionChunk(np.tile([0.5, 0.0, 0.5], (HORIZON, 1)), request.observation.time, 1 / policy_hz)

    robot.script = script
    loop = ControlLoop(robot, VirtualInference(clock, stay), LoopConfig(hz=loop_hz), clock, stop=EmergencyStop())
    stats = loop.run("stay", 5.0)
    assert stats.reason == "stalled: shoulder [rad]"
    assert 0.4 <= clock.time - stuck_at <= 0.65  # braking included


@pytest.mark.parametrize("policy_hz", [10.0, 50.0])
def test_a_fast_motion_is_no_stall(policy_hz: float) -> None:
    """A servo that is a tenth of a second behind its command, at the limit of its velocity."""
    clock = VirtualClock()
    robot = FakeRobot(clock, embodiment=replace(BODY, control_hz=policy_hz))

    def late(state: Float[np.ndarray, "s"]) -> Float[np.ndarray, "s"]:
        then = [place for at, place in robot.received if at <= clock.time - 0.1]
        return then[-1] if then else state

    robot.corrupt = late
    turn = iter([1.0, -1.0] * 100)

    def there_and_back(request: Request) -> ActionChunk:
        goal = 0.95 * next(turn)
        return ActionChunk(np.tile([goal, 2 * goal, 0.5], (HORIZON, 1)), request.observation.time, 1 / policy_hz)

    loop = ControlLoop(
        robot,
        VirtualInference(clock, there_and_back),
        LoopConfig(hz=policy_hz, execution="chunked", n_action_steps=12),
        clock,
        stop=EmergencyStop(),
    )
    assert loop.run("wave", 6.0).reason == "done"


@pytest.mark.parametrize("stopped", [False, True])
def test_an_arm_that_stands_beyond_a_limit_is_moved_back_at_the_velocity_limit(
    stopped: bool,
) -> None:
    clock, stop = VirtualClock(), EmergencyStop()
    robot = FakeRobot(clock, position=np.array([1.4, -0.2, -0.3]))
    if stopped:
        robot.script = lambda call: stop.trip("key") if clock.time > 100.2 else None
    inference = VirtualInference(clock, lambda request: None, lambda: 100.0)
    stats = ControlLoop(robot, inference, LoopConfig(first_inference_timeout_s=2.0), clock, stop=stop).run("wave", 1.5)
    seen = [event.what for event in stats.events if event.warning]
    assert "shoulder [rad] is 0.4 outside its limit: it is moved back" in seen and "gripper" in seen[1]
    path = np.stack([np.array([1.4, -0.2, -0.3]), *(place for _, place in robot.received)])
    speed = np.diff(path, axis=0) * 50
    assert (np.abs(speed) <= np.array(LIMITS.velocity) + 1e-9).all()
    assert (np.abs(np.diff(speed, axis=0, prepend=0 * speed[:1])) <= np.array(LIMITS.acceleration) / 50 + 1e-9).all()
    assert stats.clamps["position"] > 0
    if stopped:  # it brakes, wherever it is
        assert stats.reason == "key" and 1.0 < path[-1][0] < 1.4
    else:
        np.testing.assert_allclose(path[-1], [1.0, -0.2, 0.0], atol=1e-6)


def test_the_operator_who_is_gone_stops_the_arm(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe that ends, a terminal that is gone; not a file, nor /dev/null, which scripts give."""

    def said_by(stream: int) -> str | None:
        with os.fdopen(os.dup(stream)) as standard_input:
            monkeypatch.setattr("sys.stdin", standard_input)
            return operator()

    ours, theirs = os.pipe()
    assert said_by(ours) is None
    os.write(theirs, b"\n")
    assert said_by(ours) == "emergency stop: key"
    os.close(theirs)
    assert said_by(ours) == "the operator is gone: the standard input has ended"
    os.close(ours)
    master, slave = pty.openpty()
    assert said_by(slave) is None
    os.write(master, b"\n")
    assert said_by(slave) == "emergency stop: key"
    os.close(master)
    assert "gone" in (said_by(slave) or "")
    os.close(slave)
    with open(os.devnull) as nothing:
        assert said_by(nothing.fileno()) is None
    monkeypatch.setattr("sys.stdin", None)
    assert operator() is None


def test_a_process_in_the_background_of_its_terminal_says_so() -> None:
    """A shell with job control starts it so: `vla deploy … &`."""
    code = "from vla.control.stop import operator; print(operator())"
    pid, master = pty.fork()
    if pid == 0:
        os.execvp("bash", ["bash", "-c", f"set -m; {sys.executable} -c '{code}' & wait"])
    output = b""
    with suppress(OSError):  # the terminal ends with its last process
        while more := os.read(master, 1024):
            output += more
    os.waitpid(pid, 0)
    os.close(master)
    assert b"the process is in the background" in output


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTSTP, signal.SIGTERM])
def test_a_signal_brakes_the_arm(number: signal.Signals) -> None:
    clock, stop = VirtualClock(), EmergencyStop()
    robot = FakeRobot(clock)
    robot.script = lambda call: signal.raise_signal(number) if 100.5 < clock.time < 100.6 else None
    reason = ControlLoop(robot, VirtualInference(clock, follow_wave), LoopConfig(), clock, stop=stop).run("wave", 2.0)
    assert reason.reason == SIGNALS[number] and robot.held is not None
    check_received(robot, 1 / 50)
