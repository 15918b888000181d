"""What an operator does to Feetech servos between runs: look at them, clear their errors, let them go."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from vla.robots.lerobot_adapter.servos import (
    ANSWER,
    BEYOND,
    CALIBRATION,
    DEGREES,
    LOAD,
    PRESENT,
    RANGE,
    TORQUE,
    TRIES,
    Servo,
    flags_of,
)
from vla.robots.robot import RobotFault
from vla.robots.servo_health import CURES, ServoHealth

SETTLE = 0.05
"""[s] after which a servo whose torque came on reports its errors anew."""


@dataclass(frozen=True)
class ServoStatus:
    """One servo as it is now; `wrong` says what is wrong with it, and what to do."""

    servo: Servo
    health: ServoHealth | None
    torque: bool
    degrees: float | None
    """From the middle of its calibrated range; None without a calibration."""
    wrong: tuple[str, ...]

    def row(self) -> str:
        joint = f"{self.servo.arm} {self.servo.motor}".strip()
        if self.health is None:
            return f"{self.servo.id:>3}  {joint:20}  does not answer"
        place = "not calibrated" if self.degrees is None else f"{self.degrees:.1f}"
        state = ", ".join(self.health.flags) or ("see below" if self.wrong else "ok")
        return (
            f"{self.servo.id:>3}  {joint:20}{place:>15}{self.health.load:>8.0%}{self.health.temperature:>6.0f}"
            f"{self.health.voltage:>7.1f}  {'on' if self.torque else 'off':7}{state}"
        )


HEADER = f"{'id':>3}  {'joint':20}{'position [deg]':>15}{'load':>8}{'°C':>6}{'V':>7}  {'torque':7}state"


def status_of(servo: Servo) -> ServoStatus:
    """Reads one servo and changes nothing."""
    try:
        limits, torque, position = servo.limits(), bool(servo.demand(TORQUE, 1)[0]), servo.position()
        ends = CALIBRATION.unpack(servo.demand(RANGE, CALIBRATION.size))
        health = servo.health(limits, ANSWER) or servo.health(limits, ANSWER)
    except RobotFault as fault:
        return ServoStatus(servo, None, False, None, (str(fault),))
    wrong = [finding.message for finding in health.findings()] if health else [f"{servo} does not answer"]
    noted = servo.bus.calibration.get(servo.motor)
    if noted is None:
        wrong.append(f"{servo} has no calibration: calibrate the arm (docs/arm.md)")
        return ServoStatus(servo, health, torque, None, tuple(wrong))
    if (beyond := servo.outside(position)) > BEYOND:
        wrong.append(f"{servo} stands {beyond:.0f} degrees outside its calibrated range: move it inside by hand")
    if ends != (noted.range_min, noted.range_max):
        wrong.append(f"{servo} differs from the calibration file: calibrate anew (docs/arm.md)")
    degrees = (position - (noted.range_min + noted.range_max) / 2) * DEGREES
    return ServoStatus(servo, health, torque, degrees, tuple(wrong))


def clear_errors(servo: Servo) -> tuple[str, ...]:
    """The error flags that a servo had and has no more.

    Torque goes off and on again, with the goal where the joint stands, and off where it was off. A servo that reports
    nothing is left alone. Raises RobotFault where it does not answer, reports an error still, or may not be given
    torque, because it moves or is outside its calibrated range: it has none then.
    """
    if (before := servo.ask(LOAD, PRESENT.size)) is None:
        raise RobotFault(f"{servo} does not answer: check its cables", transient=False)
    if not (had := flags_of(before[0])):
        return ()
    on = servo.demand(TORQUE, 1)[0]
    servo.write(TORQUE, b"\0")
    if servo.motor not in servo.bus.calibration or servo.outside(servo.position()) > BEYOND:
        raise RobotFault(
            f"{servo} reports {', '.join(had)} and stands outside its calibrated range, its torque is off: "
            "move it inside by hand, and clear again",
            transient=False,
        )
    servo.hold()
    time.sleep(SETTLE)
    after = servo.ask(LOAD, PRESENT.size)
    if not on:
        servo.write(TORQUE, b"\0")
    if after is None or flags_of(after[0]):
        still = "does not answer" if after is None else f"still reports {', '.join(flags_of(after[0]))}"
        raise RobotFault(f"{servo} {still}: {CURES[had[0]]}", transient=False)
    return had


def relax(servos: Sequence[Servo]) -> list[str]:
    """Torque off at each servo; says which kept it."""
    kept = []
    for servo in servos:
        for _ in range(TRIES):
            servo.write(TORQUE, b"\0")
            if (now := servo.ask(TORQUE, 1)) is not None and not now[1][0]:
                break
        else:
            kept.append(f"{servo} does not confirm that its torque is off")
    return kept
