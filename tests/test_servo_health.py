"""What the control loop does about its servos' health: on the virtual clock, and on the emulated bus."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from control_fakes import FakeRobot, VirtualClock, VirtualInference, check_received, follow_wave
from emulated_arms import connected, emulated, make

from vla.control.config import LoopConfig
from vla.control.loop import ControlLoop
from vla.control.stats import ControlStats
from vla.control.stop import EmergencyStop
from vla.control.thread_inference import ThreadInference
from vla.control.tick import Tick
from vla.policies.hold import HoldPolicy
from vla.robots.dry_run import DryRun
from vla.robots.feetech_emulator.packets import Error
from vla.robots.feetech_emulator.servo import Register
from vla.robots.lerobot_adapter.servos import Servo
from vla.robots.servo_health import ServoHealth, ServoLimits

SOUND = ServoHealth("servo 2 (shoulder_lift)", 0.1, 12.0, 40.0, (), ServoLimits(70.0, 4.0, 14.0, 0.8))


@dataclass
class WatchedRobot(FakeRobot):
    """`report` gives each reading, which takes all the time it may."""

    report: Callable[[float], ServoHealth | None] = lambda time: SOUND
    readings: list[float] = field(default_factory=list)

    def health(self, seconds: float) -> ServoHealth | None:
        self.clock.time += seconds
        self.readings.append(self.clock.time)
        return self.report(self.clock.time)


def run(robot: WatchedRobot, seconds: float = 3.0, hz: float = 50.0) -> ControlStats:
    loop = ControlLoop(
        robot, VirtualInference(robot.clock, follow_wave), LoopConfig(hz=hz), robot.clock, stop=EmergencyStop()
    )
    stats = loop.run("wave", seconds)
    check_received(robot, 1 / hz)
    return stats


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ({"flags": ("overload",)}, r"servo 2 \(shoulder_lift\) reports overload: take the load off.*`vla robot clear`"),
        ({"temperature": 71.0}, r"servo 2 .* is at 71 °C, its limit is 70 °C: let it cool"),
        ({"voltage": 3.5}, "servo 2 .* has 3.5 V, it takes 4 to 14 V: check the power supply"),
    ],
)
def test_a_servo_in_trouble_ends_the_run_and_is_named(bad: dict[str, object], reason: str) -> None:
    robot = WatchedRobot(VirtualClock())
    robot.report = lambda time: replace(SOUND, **bad) if time > 101.0 else SOUND  # type: ignore[arg-type]
    stats = run(robot)
    assert re.match(reason, stats.reason) and stats.outcome == "robot", stats.reason
    assert robot.clock.time < 101.0 + 0.4 and robot.held is not None


def test_a_warning_comes_first_and_once() -> None:
    robot = WatchedRobot(VirtualClock())
    robot.report = lambda time: replace(SOUND, temperature=65.0, load=-0.9, voltage=4.2)
    stats = run(robot)
    told = [event.what for event in stats.events if event.warning]
    assert stats.reason == "done" and len(told) == 3 and all("servo 2 (shoulder_lift)" in line for line in told)
    assert "65 °C" in told[0] and "4.2 V" in told[1] and "exerts 90%" in told[2]


def test_one_reading_alone_is_no_finding() -> None:
    """A damaged answer whose checksum fits, and a peak of load."""
    robot = WatchedRobot(VirtualClock())
    odd = replace(SOUND, flags=("overload",), load=1.0)
    robot.report = lambda time: odd if len(robot.readings) in (5, 9) else SOUND
    stats = run(robot)
    assert stats.reason == "done" and not any(event.warning for event in stats.events)


@pytest.mark.parametrize("hz", [50.0, 200.0])
def test_readings_take_the_time_that_is_left_and_no_more(hz: float) -> None:
    robot = WatchedRobot(VirtualClock())
    stats = run(robot, hz=hz)
    reason, missed = stats.reason, stats.missed
    assert (reason, missed) == ("done", 0)
    assert len(robot.readings) >= 20 and np.diff(robot.readings).min() >= 0.045


def test_a_tick_without_time_left_reads_nothing() -> None:
    robot = WatchedRobot(VirtualClock())

    def slow(call: str) -> None:
        robot.clock.time += 0.019 if call == "state" else 0.016 if call == "observe" else 0.0

    robot.script = slow
    assert run(robot).reason == "done" and robot.readings == []


def test_an_overload_in_mid_run_is_named_and_a_dry_run_sees_it_too(tmp_path: Path) -> None:
    with emulated(tmp_path, "so101") as port:
        robot = make(port, tmp_path)
        for one in (robot, DryRun(robot)):
            port.bus.servos[1].error = Error(0)

            def trip(tick: Tick) -> None:
                port.bus.servos[1].overload()

            inference = ThreadInference(HoldPolicy(robot.embodiment))
            with connected(one):  # type: ignore[arg-type]
                loop = ControlLoop(one, inference, LoopConfig(), stop=EmergencyStop(), watch=trip, connect=False)
                stats = loop.run("wait", 20.0)
            inference.close()
            assert stats.reason.startswith("servo 2 (shoulder_lift) reports overload"), stats.reason


def test_a_servo_is_read_as_its_registers_are(tmp_path: Path) -> None:
    with emulated(tmp_path, "so101") as port, connected(make(port, tmp_path)) as robot:
        bus, lift = robot._robot.bus, port.bus.servos[1]
        servo = Servo(bus, "shoulder_lift")
        limits = servo.limits()
        assert limits == ServoLimits(70.0, 4.0, 14.0, 0.8)
        lift.set(Register.PRESENT_VOLTAGE, 117)
        end, health = time.monotonic() + 60, None
        while health is None or not health.load:  # a joint may swing through the angle at which it needs no torque
            assert time.monotonic() < end
            health = servo.health(limits, 0.5)
        assert health.voltage == 11.7 and health.flags == ()
        assert health.temperature == lift.get(Register.PRESENT_TEMPERATURE) and abs(health.load) < 1
        port.bus.faults.mute = {2}
        assert servo.health(limits, 0.002) is None
        port.unplug()
        assert servo.health(limits, 0.002) is None
