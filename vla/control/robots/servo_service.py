"""What an operator does to Feetech servos between runs: look at them, clear their errors, let them go."""

from __future__ import annotations

import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vla.control.robots.servos import (
    ALIKE,
    ANSWER,
    BEYOND,
    CALIBRATION,
    DEGREES,
    GOAL,
    LOAD,
    POSITION,
    PRESENT,
    TORQUE,
    TRIES,
    Servo,
    flags_of,
)
from vla.control.servo_health import CURES, ServoHealth

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
    silent = ServoStatus(servo, None, False, None, (f"{servo} does not answer: check its cables",))
    if servo.ask(TORQUE, 1) is None:
        return silent
    health = servo.health(servo.limits(), ANSWER)
    if health is None:
        return silent
    wrong = [finding.message for finding in health.findings()]
    position = struct.unpack("<H", servo.demand(POSITION, 2))[0]
    noted = servo.bus.calibration.get(servo.motor)
    degrees = None
    if noted is None:
        wrong.append(f"{servo} has no calibration: calibrate the arm (docs/arm.md)")
    else:
        degrees = (position - (noted.range_min + noted.range_max) / 2) * DEGREES
        if (beyond := outside(noted, position)) > BEYOND:
            wrong.append(f"{servo} stands {beyond * DEGREES:.0f} degrees outside its calibrated range: move it inside")
        if CALIBRATION.unpack(servo.demand(9, CALIBRATION.size)) != (noted.range_min, noted.range_max):
            wrong.append(f"{servo} differs from the calibration file: calibrate anew (docs/arm.md)")
    return ServoStatus(servo, health, bool(servo.demand(TORQUE, 1)[0]), degrees, tuple(wrong))


def outside(noted: Any, position: int) -> int:
    """How far a position is outside the calibrated range [encoder steps]; 0 or less inside."""
    return int(max(noted.range_min - position, position - noted.range_max))


def clear_errors(servo: Servo) -> tuple[list[str], str]:
    """The error flags that a servo had, and why it is not well now, empty where it is.

    Torque goes off and on again, with the goal where the joint stands, and off where it was off. A servo that reports
    nothing is left alone.
    """
    if (before := servo.ask(LOAD, PRESENT.size)) is None:
        return [], f"{servo} does not answer: check its cables"
    if not (had := list(flags_of(before[0]))):
        return [], ""
    on = servo.demand(TORQUE, 1)[0]
    servo.write(TORQUE, b"\0")
    first, place = servo.demand(POSITION, 2), servo.demand(POSITION, 2)
    moved = abs(int.from_bytes(first, "little") - int.from_bytes(place, "little"))
    noted = servo.bus.calibration.get(servo.motor)
    if noted is None or outside(noted, int.from_bytes(place, "little")) > BEYOND:
        return had, f"{servo} stands outside its calibrated range, its torque is off: move it inside, and clear again"
    if moved > ALIKE:
        return had, f"{servo} moves, its torque is off: hold the arm, and clear again"
    servo.write(GOAL, place)
    servo.write(TORQUE, b"\1")
    time.sleep(SETTLE)
    after = servo.ask(LOAD, PRESENT.size)
    if not on:
        servo.write(TORQUE, b"\0")
    if after is None:
        return had, f"{servo} does not answer: check its cables"
    still = flags_of(after[0])
    return had, f"{servo} still reports {', '.join(still)}: {CURES[still[0]]}" if still else ""


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
