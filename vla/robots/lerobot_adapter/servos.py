"""Feetech servos on a bus of LeRobot's driver: what that leaves out or does unsafely.

LeRobot's driver waits 50 ms and more for an answer, and raises where a servo reports an error. Here one register block
is read in the time that there is, with the error flags that come with each answer.
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
"""[s] for an answer when nothing is in a hurry."""
TRIES = 3
PRESENT = struct.Struct("<HBBxB")
"""Registers 60 to 65: load, voltage, temperature, status."""
LIMITS = struct.Struct("<BBB")
"""Registers 13 to 15: the most temperature, the most and the least voltage."""
CALIBRATION = struct.Struct("<HH")
"""Registers 9 to 12: the range of positions."""
RANGE, MAX_TEMPERATURE, MODE, OVERLOAD_TORQUE, TORQUE, GOAL, POSITION, LOAD = 9, 13, 33, 36, 40, 42, 56, 60
SIGN = 1 << 15
"""Of a position below 0."""
POSITION_MODE = 0
DEGREES = 360 / 4096
"""An encoder step."""
BEYOND = 3.0
"""[degrees] that a joint which rests on its stop may stand outside its calibrated range."""
ALIKE = 20
"""[encoder steps] by which two readings of a joint that nothing drives may differ."""
GRIP = 0.9
"""Of the torque at which the gripper's overload protection begins to count down, what it may exert."""
SILENCE = 10
"""Rounds without any answer before that is logged."""


@dataclass(frozen=True)
class Servo:
    """`motor` is its name on LeRobot's bus; `arm` that of its arm, empty where there is one."""

    bus: Any
    motor: str
    arm: str = ""

    @property
    def id(self) -> int:
        return int(self.bus.motors[self.motor].id)

    def __str__(self) -> str:
        return f"servo {self.id} ({self.arm}{' ' * bool(self.arm)}{self.motor})"

    def read(self, address: int, count: int, seconds: float) -> tuple[Error, bytes] | None:
        """Its error flags and `count` bytes from `address` on; None where no sound answer comes within `seconds`."""
        return self._transfer(Packet(self.id, Instruction.READ, bytes((address, count))), count, seconds)

    def write(self, address: int, data: bytes) -> bool:
        """Whether it has confirmed; tried again. Unlike the driver's, also while it reports an error."""
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

    def ask(self, address: int, count: int) -> tuple[Error, bytes] | None:
        """As `read`, tried again."""
        answers = (self.read(address, count, ANSWER) for _ in range(TRIES))
        return next((answer for answer in answers if answer is not None), None)

    def demand(self, address: int, count: int) -> bytes:
        """As `ask`. Raises RobotFault where it does not answer."""
        if (answer := self.ask(address, count)) is None:
            raise RobotFault(f"{self} does not answer: check its cables", transient=False)
        return answer[1]

    def position(self) -> int:
        """Where it stands [encoder steps], by two readings that agree. Raises RobotFault where none do."""
        before = None
        for _ in range(TRIES + 1):
            coded = int.from_bytes(self.demand(POSITION, 2), "little")
            now = -(coded - SIGN) if coded & SIGN else coded
            if before is not None and abs(now - before) <= ALIKE:
                return now
            before = now
        raise RobotFault(f"{self} moves, or cannot be read twice alike: hold the arm still", transient=False)

    def outside(self, position: int) -> float:
        """How far a position is outside its calibrated range [degrees]; 0 or less inside."""
        noted = self.bus.calibration[self.motor]
        return max(noted.range_min - position, position - noted.range_max) * DEGREES

    def hold(self) -> None:
        """Torque on, its goal where it stands: nothing moves. Raises RobotFault where it does not confirm."""
        position = self.position()
        coded = abs(position) | (SIGN if position < 0 else 0)
        if not (self.write(GOAL, coded.to_bytes(2, "little")) and self.write(TORQUE, b"\1")):
            raise RobotFault(f"{self} does not answer: check its cables", transient=False)

    def limits(self) -> ServoLimits:
        """Those of its EEPROM. Raises RobotFault where it does not answer."""
        temperature, high, low = LIMITS.unpack(self.demand(MAX_TEMPERATURE, LIMITS.size))
        overload = self.demand(OVERLOAD_TORQUE, 1)[0]
        none = ServoLimits()
        return ServoLimits(
            temperature=temperature or none.temperature,
            low_voltage=low / 10 if low else none.low_voltage,
            high_voltage=high / 10 if high else none.high_voltage,
            load=overload / 100 if overload else none.load,
        )

    def health(self, limits: ServoLimits, seconds: float) -> ServoHealth | None:
        """None where it does not answer within `seconds`."""
        if (answer := self.read(LOAD, PRESENT.size, seconds)) is None:
            return None
        load, voltage, temperature, status = PRESENT.unpack(answer[1])
        flags = flags_of(answer[0] | Error(status))
        share = (load & 0x3FF) / 1000 * (-1 if load & 0x400 else 1)
        return ServoHealth(str(self), share, voltage / 10, float(temperature), flags, limits)


def flags_of(error: Error) -> tuple[str, ...]:
    """The names of the error flags that are set; bits without a meaning are left out."""
    return tuple(str(flag.name).lower() for flag in Error if flag in error)


class HealthReader:
    """The servos' health, one after the other. Reads their limits at once: raises RobotFault for one that is silent."""

    def __init__(self, servos: Sequence[Servo]) -> None:
        self._servos = [(servo, servo.limits()) for servo in servos]
        self._next = self._silent = 0

    def next(self, seconds: float) -> ServoHealth | None:
        """The next servo's; None where it does not answer within `seconds`, or there is none."""
        if not self._servos:
            return None
        servo, limits = self._servos[self._next]
        self._next = (self._next + 1) % len(self._servos)
        health = servo.health(limits, seconds)
        self._silent = 0 if health is not None else self._silent + 1
        if self._silent == SILENCE * len(self._servos):
            LOG.warning("load and temperature of the servos cannot be read in time: they are not watched")
        return health


def within_range(bus: Any) -> None:
    """Raises InputError for a joint that stands outside its calibrated range, RobotFault where one does not answer.

    The servo takes a goal outside it for the range's end, so that it would go there at full speed with torque.
    """
    for servo in (Servo(bus, motor) for motor in bus.motors):
        if (beyond := servo.outside(servo.position())) > BEYOND:
            raise InputError(
                f"{servo} stands {beyond:.0f} degrees outside its calibrated range: move it inside by hand, with "
                "torque off (`vla robot relax`), or calibrate anew"
            )


def limit_grip(servo: Servo) -> None:
    """Keeps a gripper's torque below what trips its overload protection, until the supply is cut.

    LeRobot sets that to 25 % and the torque to 50 %: a gripper that closes on something trips after two seconds.
    """
    if overload := servo.demand(OVERLOAD_TORQUE, 1)[0]:
        servo.bus.write("Torque_Limit", servo.motor, int(GRIP * 10 * overload), num_retry=TRIES)
