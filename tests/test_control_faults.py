"""Every fault in every phase of a run: what the arm received stays within its limits, and it ends at rest."""

from __future__ import annotations

import signal

import numpy as np
import pytest
from control_fakes import HORIZON, FakeRobot, VirtualClock, VirtualInference, check_received, follow_wave

from vla.control.config import LoopConfig
from vla.control.inference import Answer, Request
from vla.control.loop import ControlLoop
from vla.control.stop import EmergencyStop
from vla.robots.robot import RobotFault
from vla.types import ActionChunk

SECONDS = 2.4
PHASES = {"connect": -1.0, "before": 0.2, "running": 1.0, "holding": 2.1, "exit": SECONDS - 0.005}
BUS = ("mute", "dead", "overload")
ENDS = {
    "mute": "robot: mute",
    "dead": "robot: dead",
    "overload": "robot: overload",
    "corrupt": "robot: the",
    "narrow": "robot: the",
    "stuck": "stalled",
    "dies": "the inference died",
    "silent": "the policy has not answered",
    "key": "key",
    "SIGINT": "interrupted",
    "SIGTERM": "terminated",
    "SIGUSR1": "emergency stop",
}
PASSING = ("glitch", "slow", "nan", "shape", "invalid", "late")


class Bench:
    """An arm under a policy that gives its last chunk early, so that it holds in the end; one fault from a time on."""

    def __init__(self, fault: str, phase: str) -> None:
        self.clock, self.stop = VirtualClock(), EmergencyStop()
        self.fault, self.at, self.count = fault, PHASES[phase], 0
        self.robot = FakeRobot(self.clock, self.script)
        self.inference = VirtualInference(self.clock, self.policy, self.delay)
        self.answer, self.inference.answer = self.inference.answer, self.said  # type: ignore[method-assign]

    @property
    def on(self) -> bool:
        return self.at < 0 or (self.robot.first > 0 and self.clock.time - self.robot.first >= self.at)

    def script(self, call: str) -> None:
        if not self.on:
            return
        self.count += 1
        name = self.fault
        if (
            name in ("mute", "dead")
            or (name == "overload" and call == "command")
            or (name == "glitch" and self.count < 3)
        ):
            self.clock.time += 0.004
            raise RobotFault(name, transient=name in ("mute", "glitch"))
        if name == "slow" and self.count < 5:
            self.clock.time += 0.07
        if name in ("corrupt", "narrow"):
            self.robot.corrupt = (lambda state: state * np.nan) if name == "corrupt" else (lambda state: state[:2])
        if name == "stuck":
            self.robot.corrupt = lambda state: np.array([-0.9, -1.9, state[2]])
        if name == "dies":
            self.inference.dead = True
        if name == "key":
            self.stop.trip("key")
        if name.startswith("SIG") and self.count < 3:
            signal.raise_signal(signal.Signals[name])

    def delay(self) -> float:
        slow = {"late": 0.65, "silent": 100.0}.get(self.fault, 0.0) if self.on else 0.0
        return slow or (0.4 if len(self.inference.requests) == 1 else 0.05)

    def policy(self, request: Request) -> ActionChunk | None:
        time = request.observation.time
        if self.on and self.fault in ("nan", "shape"):
            bad = np.full((HORIZON, 3), np.nan) if self.fault == "nan" else np.zeros((HORIZON, 2))
            return ActionChunk(bad, time, 0.1)
        if (self.on and self.fault == "invalid") or time - self.robot.first > 0.45:
            return None
        return follow_wave(request)

    def said(self) -> Answer | None:
        if self.on and self.fault == "bug":
            raise RuntimeError("a bug")
        return self.answer()

    def run(self) -> str:
        config = LoopConfig(
            invalid=None,
            inference_timeout_s=0.15 if self.fault == "silent" else 2.0,
            first_inference_timeout_s=0.7,
            stall_seconds=0.1,
        )
        loop = ControlLoop(self.robot, self.inference, config, self.clock, stop=self.stop)
        try:
            return loop.run("wave", SECONDS).reason
        finally:
            check_received(self.robot, 1 / config.hz)
            assert not self.robot.connected


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("fault", [*ENDS, *PASSING, "bug"])
def test_fault(fault: str, phase: str) -> None:
    bench = Bench(fault, phase)
    try:
        reason = bench.run()
    except RobotFault:
        assert phase == "connect" and not bench.robot.received
        return
    except RuntimeError as error:
        assert fault == "bug" and str(error) == "a bug"
        reason = "bug"
    if phase != "exit" and phase != "connect" and fault in ENDS and (fault, phase) != ("silent", "before"):
        assert reason.startswith(ENDS[fault]), reason
    if fault in PASSING:
        assert reason == "done"
    if fault not in ("mute", "dead"):
        last = bench.robot.received[-1][1] if bench.robot.received else bench.robot.position
        if bench.robot.held is not None:
            np.testing.assert_array_equal(bench.robot.held, last)
        else:
            assert phase == "connect" and fault in ("corrupt", "narrow", "glitch")


def test_a_stop_that_was_tripped_before_moves_nothing() -> None:
    bench = Bench("none", "running")
    bench.stop.trip("key")
    assert bench.run() == "key" and not bench.robot.received


def test_a_source_of_the_stop_latches() -> None:
    said = iter([None, "button", None])
    stop = EmergencyStop([lambda: next(said)])
    assert [stop.poll() for _ in range(4)] == [None, "button", "button", "button"]
