"""Maintenance of Feetech servos between runs: read their status, clear errors, disable torque."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from vla.robots.lerobot_adapter.servos import (
    ANSWER,
    CALIBRATION,
    DEGREES,
    LOAD,
    PRESENT,
    RANGE,
    RANGE_TOLERANCE,
    TORQUE,
    TRIES,
    Servo,
    flags_of,
)
from vla.robots.robot import RobotFault
from vla.robots.servo_health import CURES, ServoHealth

SETTLE = 0.05
"""Time [s] after which a servo reports its errors again once torque is enabled."""


@dataclass(frozen=True)
class ServoStatus:
    """The current status of a servo. `wrong` lists its problems with their remedies."""

    servo: Servo
    health: ServoHealth | None
    torque: bool
    degrees: float | None
    """Position relative to the middle of its calibrated range [degrees]; None without a calibration."""
    wrong: tuple[str, ...]

    def row(self) -> str:
        """The status as a row below HEADER."""
        joint = f"{self.servo.arm} {self.servo.motor}".strip()
        if self.health is None:
            return f"{self.servo.id:>3}  {joint:20}  does not answer"
        position = "not calibrated" if self.degrees is None else f"{self.degrees:.1f}"
        state = ", ".join(self.health.flags) or ("see below" if self.wrong else "ok")
        return (
            f"{self.servo.id:>3}  {joint:20}{position:>15}{self.health.load:>8.0%}{self.health.temperature:>6.0f}"
            f"{self.health.voltage:>7.1f}  {'on' if self.torque else 'off':7}{state}"
        )


HEADER = f"{'id':>3}  {'joint':20}{'position [deg]':>15}{'load':>8}{'°C':>6}{'V':>7}  {'torque':7}state"


def status_of(servo: Servo) -> ServoStatus:
    """Reads the status of a servo without changing it."""
    try:
        limits, torque, position = servo.limits(), bool(servo.read_required(TORQUE, 1)[0]), servo.position()
        ends = CALIBRATION.unpack(servo.read_required(RANGE, CALIBRATION.size))
        health = servo.health(limits, ANSWER) or servo.health(limits, ANSWER)
    except RobotFault as fault:
        return ServoStatus(servo, None, False, None, (str(fault),))
    wrong = [finding.message for finding in health.findings()] if health else [f"{servo} does not answer"]
    calibration = servo.bus.calibration.get(servo.motor)
    if calibration is None:
        wrong.append(f"{servo} has no calibration: calibrate the arm (docs/arm.md)")
        return ServoStatus(servo, health, torque, None, tuple(wrong))
    if (excess := servo.outside(position)) > RANGE_TOLERANCE:
        wrong.append(f"{servo} stands {excess:.0f} degrees outside its calibrated range: move it inside by hand")
    if ends != (calibration.range_min, calibration.range_max):
        wrong.append(f"{servo} differs from the calibration file: calibrate again (docs/arm.md)")
    degrees = (position - (calibration.range_min + calibration.range_max) / 2) * DEGREES
    return ServoStatus(servo, health, torque, degrees, tuple(wrong))


def clear_errors(servo: Servo) -> tuple[str, ...]:
    """Clears the errors of a servo; does nothing if it reports none.

    Torque is disabled and enabled again, with the goal at the current position, and then restored to its former state.

    Returns:
        The error flags that were cleared.

    Raises:
        RobotFault: if the servo does not answer or still reports an error, or if torque must stay off because it moves
            or is outside its calibrated range.
    """
    if (before := servo.query(LOAD, PRESENT.size)) is None:
        raise RobotFault(f"{servo} does not answer: check its cables", transient=False)
    if not (cleared := flags_of(before[0])):
        return ()
    had_torque = servo.read_required(TORQUE, 1)[0]
    servo.write(TORQUE, b"\0")
    if servo.motor not in servo.bus.calibration or servo.outside(servo.position()) > RANGE_TOLERANCE:
        raise RobotFault(
            f"{servo} reports {', '.join(cleared)} and stands outside its calibrated range, its torque is off: "
            "move it inside by hand, and clear again",
            transient=False,
        )
    servo.hold()
    time.sleep(SETTLE)
    after = servo.query(LOAD, PRESENT.size)
    if not had_torque:
        servo.write(TORQUE, b"\0")
    if after is None or flags_of(after[0]):
        still = "does not answer" if after is None else f"still reports {', '.join(flags_of(after[0]))}"
        raise RobotFault(f"{servo} {still}: {CURES[cleared[0]]}", transient=False)
    return cleared


def disable_torque(servos: Sequence[Servo]) -> list[str]:
    """Disables the torque of each servo; returns a message for each failure."""
    failures = []
    for servo in servos:
        for _ in range(TRIES):
            servo.write(TORQUE, b"\0")
            if (now := servo.query(TORQUE, 1)) is not None and not now[1][0]:
                break
        else:
            failures.append(f"{servo} does not confirm that its torque is off")
    return failures
