"""Feetech servos on a bus of LeRobot's driver: functions that the driver lacks or performs unsafely.

LeRobot's driver waits 50 ms or more for an answer, and raises if a servo reports an error. The functions of this module
read one register block within a given time, and return the error flags of each answer.
"""

from __future__ import annotations

import logging
import select
import struct
import termios
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vla.errors import InputError
from vla.robots.feetech_emulator.packets import Error, Instruction, Packet, Parser, encode
from vla.robots.robot import RobotFault
from vla.robots.servo_health import ServoHealth, ServoLimits

LOG = logging.getLogger(__name__)
ANSWER = 0.03
"""Timeout of an answer [s] outside the control loop."""
TRIES = 3
PRESENT = struct.Struct("<HBBxB")
"""Registers 60 to 65: load, voltage, temperature, status."""
LIMITS = struct.Struct("<BBB")
"""Registers 13 to 15: largest temperature, largest and smallest voltage."""
CALIBRATION = struct.Struct("<HH")
"""Registers 9 to 12: range of positions."""
RANGE, MAX_TEMPERATURE, MODE, OVERLOAD_TORQUE, TORQUE, GOAL, POSITION, LOAD = 9, 13, 33, 36, 40, 42, 56, 60
SIGN = 1 << 15
"""Sign bit of a negative position."""
POSITION_MODE = 0
DEGREES = 360 / 4096
"""Degrees per encoder step."""
RANGE_TOLERANCE = 3.0
"""Distance outside the calibrated range [degrees] allowed for a joint that rests on its mechanical stop."""
MOTION_TOLERANCE = 20
"""Largest difference [encoder steps] between two readings of a joint at rest."""
GRIP = 0.9
"""Torque limit of the gripper, as a fraction of the torque at which its overload protection starts."""
SILENCE = 10
"""Number of rounds over all servos without any answer after which a warning is logged."""


@dataclass(frozen=True)
class Servo:
    """A servo. `motor` is its name on LeRobot's bus; `arm` is the name of its arm, empty for a single arm."""

    bus: Any
    motor: str
    arm: str = ""

    @property
    def id(self) -> int:
        """Its id on the bus."""
        return int(self.bus.motors[self.motor].id)

    def __str__(self) -> str:
        return f"servo {self.id} ({self.arm}{' ' * bool(self.arm)}{self.motor})"

    def read(self, address: int, count: int, seconds: float) -> tuple[Error, bytes] | None:
        """Reads `count` bytes from `address`; returns error flags and data, or None without a valid answer in time."""
        return self._transfer(Packet(self.id, Instruction.READ, bytes((address, count))), count, seconds)

    def write(self, address: int, data: bytes) -> bool:
        """Writes with retries, also while the servo reports an error; returns whether it confirmed."""
        request = Packet(self.id, Instruction.WRITE, bytes((address,)) + data)
        return any(self._transfer(request, 0, ANSWER) is not None for _ in range(TRIES))

    def _transfer(self, request: Packet, count: int, seconds: float) -> tuple[Error, bytes] | None:
        port, parser, until = self.bus.port_handler.ser, Parser(), time.monotonic() + seconds
        try:
            port.reset_input_buffer()
            port.write(encode(request))
            while (left := until - time.monotonic()) > 0:
                if not select.select([port.fileno()], [], [], left)[0]:
                    break
                for answer in parser.feed(port.read(max(1, port.in_waiting))):
                    if answer.id == self.id and len(answer.parameters) == count:
                        return Error(answer.code), answer.parameters
        except (OSError, ValueError, termios.error):  # the port is gone
            pass
        return None

    def query(self, address: int, count: int) -> tuple[Error, bytes] | None:
        """Like `read`, with retries."""
        answers = (self.read(address, count, ANSWER) for _ in range(TRIES))
        return next((answer for answer in answers if answer is not None), None)

    def read_required(self, address: int, count: int) -> bytes:
        """Like `query`, but returns the data alone.

        Raises:
            RobotFault: if the servo does not answer.
        """
        if (answer := self.query(address, count)) is None:
            raise RobotFault(f"{self} does not answer: check its cables", transient=False)
        return answer[1]

    def position(self) -> int:
        """The position [encoder steps], confirmed by two readings.

        Raises:
            RobotFault: if no two readings agree, or the servo does not answer.
        """
        before = None
        for _ in range(TRIES + 1):
            coded = int.from_bytes(self.read_required(POSITION, 2), "little")
            now = -(coded - SIGN) if coded & SIGN else coded
            if before is not None and abs(now - before) <= MOTION_TOLERANCE:
                return now
            before = now
        raise RobotFault(f"{self} moves, or its readings do not agree: hold the arm still", transient=False)

    def outside(self, position: int) -> float:
        """Distance of a position outside the calibrated range [degrees]; 0 or less inside."""
        calibration = self.bus.calibration[self.motor]
        return max(calibration.range_min - position, position - calibration.range_max) * DEGREES

    def hold(self) -> None:
        """Enables torque with the goal at the current position, so that nothing moves.

        Raises:
            RobotFault: if the servo does not confirm.
        """
        position = self.position()
        coded = abs(position) | (SIGN if position < 0 else 0)
        if not (self.write(GOAL, coded.to_bytes(2, "little")) and self.write(TORQUE, b"\1")):
            raise RobotFault(f"{self} does not answer: check its cables", transient=False)

    def limits(self) -> ServoLimits:
        """The limits in its EEPROM.

        Raises:
            RobotFault: if the servo does not answer.
        """
        temperature, high, low = LIMITS.unpack(self.read_required(MAX_TEMPERATURE, LIMITS.size))
        overload = self.read_required(OVERLOAD_TORQUE, 1)[0]
        none = ServoLimits()
        return ServoLimits(
            temperature=temperature or none.temperature,
            low_voltage=low / 10 if low else none.low_voltage,
            high_voltage=high / 10 if high else none.high_voltage,
            load=overload / 100 if overload else none.load,
        )

    def health(self, limits: ServoLimits, seconds: float) -> ServoHealth | None:
        """Reads its health; None if it does not answer within `seconds`."""
        if (answer := self.read(LOAD, PRESENT.size, seconds)) is None:
            return None
        load, voltage, temperature, status = PRESENT.unpack(answer[1])
        flags = flags_of(answer[0] | Error(status))
        share = (load & 0x3FF) / 1000 * (-1 if load & 0x400 else 1)
        return ServoHealth(str(self), share, voltage / 10, float(temperature), flags, limits)


def flags_of(error: Error) -> tuple[str, ...]:
    """The names of the error flags that are set; undefined bits are ignored."""
    return tuple(str(flag.name).lower() for flag in Error if flag in error)


class HealthReader:
    """Reads the health of the servos in turn. The constructor reads their limits.

    Raises:
        RobotFault: if a servo does not answer.
    """

    def __init__(self, servos: Sequence[Servo]) -> None:
        self._servos = [(servo, servo.limits()) for servo in servos]
        self._next = self._silent = 0

    def next(self, seconds: float) -> ServoHealth | None:
        """The health of the next servo; None if it does not answer within `seconds`, or without servos."""
        if not self._servos:
            return None
        servo, limits = self._servos[self._next]
        self._next = (self._next + 1) % len(self._servos)
        health = servo.health(limits, seconds)
        self._silent = 0 if health is not None else self._silent + 1
        if self._silent == SILENCE * len(self._servos):
            LOG.warning("load and temperature of the servos cannot be read in time: they are not monitored")
        return health


def check_within_range(bus: Any) -> None:
    """Checks that all joints are inside their calibrated ranges.

    A servo clips its goal to the range: with torque it would move to the end of the range at full speed.

    Raises:
        InputError: for a joint outside its calibrated range.
        RobotFault: if a servo does not answer.
    """
    for servo in (Servo(bus, motor) for motor in bus.motors):
        if (excess := servo.outside(servo.position())) > RANGE_TOLERANCE:
            raise InputError(
                f"{servo} stands {excess:.0f} degrees outside its calibrated range: move it inside by hand, with "
                "torque off (`vla robot disable_torque`), or calibrate again"
            )


def limit_grip(servo: Servo) -> None:
    """Limits the torque of a gripper to below its overload protection, until the supply is switched off.

    LeRobot sets the protection to 25 % and the torque to 50 %: a gripper that grasps an object trips after 2 s.
    """
    if overload := servo.read_required(OVERLOAD_TORQUE, 1)[0]:
        servo.bus.write("Torque_Limit", servo.motor, int(GRIP * 10 * overload), num_retry=TRIES)
