"""An emulated STS3215 servo: its registers and the behavior of its firmware.

Sources: the register table and defaults of Feetech's STS3215 manual, with the names of LeRobot's table. The position
controller is MuJoCo's actuator: gains (registers 21 to 23) can be written but have no effect.
"""

from __future__ import annotations

import math
import struct
from enum import IntEnum

from vla.robots.feetech_emulator.packets import Error

TICKS = 4096
TICK = 2 * math.pi / TICKS
"""One step of the encoder [rad]."""
CENTRE = 2048
STALL_TORQUE = 2.94
"""Stall torque [N m] at 12 V."""
MAX_SPEED = 4.7
"""Speed without load [rad/s]: 0.222 s for 60 degrees."""
MAX_ACCELERATION = 100 * 254 * TICK
"""Largest acceleration of the motion profile [rad/s^2]: register 41 has a unit of 100 steps per second squared."""
ROOM, WARMTH, HEATING_TIME = 25.0, 50.0, 240.0
"""Temperature without load and its increase at full load [degrees C], and the time constant [s]; estimates."""


class Register(IntEnum):
    """Register addresses. Registers in WIDE have two bytes."""

    FIRMWARE = 0
    MODEL = 3
    ID = 5
    RETURN_DELAY = 7
    MIN_POSITION = 9
    MAX_POSITION = 11
    MAX_TEMPERATURE = 13
    MAX_VOLTAGE = 14
    MIN_VOLTAGE = 15
    MAX_TORQUE = 16
    PHASE = 18
    HOMING_OFFSET = 31
    MODE = 33
    PROTECTIVE_TORQUE = 34
    PROTECTION_TIME = 35
    OVERLOAD_TORQUE = 36
    TORQUE_ENABLE = 40
    ACCELERATION = 41
    GOAL_POSITION = 42
    GOAL_VELOCITY = 46
    TORQUE_LIMIT = 48
    LOCK = 55
    PRESENT_POSITION = 56
    PRESENT_VELOCITY = 58
    PRESENT_LOAD = 60
    PRESENT_VOLTAGE = 62
    PRESENT_TEMPERATURE = 63
    STATUS = 65
    MOVING = 66
    PRESENT_CURRENT = 69


R = Register
WIDE = {
    R.MODEL, R.MIN_POSITION, R.MAX_POSITION, R.MAX_TORQUE, R.HOMING_OFFSET, R.GOAL_POSITION, R.GOAL_VELOCITY,
    R.TORQUE_LIMIT, R.PRESENT_POSITION, R.PRESENT_VELOCITY, R.PRESENT_LOAD, R.PRESENT_CURRENT,
}  # fmt: skip
SIGN_BIT = {
    R.HOMING_OFFSET: 11, R.GOAL_POSITION: 15, R.GOAL_VELOCITY: 15, R.PRESENT_POSITION: 15, R.PRESENT_VELOCITY: 15,
    R.PRESENT_LOAD: 10,
}  # fmt: skip
READ_ONLY = (range(5), range(56, 71))
EEPROM = (range(40), range(80, 87))
SIZE = 87
_PRESENT = struct.Struct("<HHH")
FACTORY = {
    R.FIRMWARE: 3, R.FIRMWARE + 1: 10, R.MODEL: 777, R.MAX_POSITION: TICKS - 1, R.MAX_TEMPERATURE: 70,
    R.MAX_VOLTAGE: 140, R.MIN_VOLTAGE: 40, R.MAX_TORQUE: 1000, R.PHASE: 12, R.RETURN_DELAY: 250,
    R.PROTECTIVE_TORQUE: 20, R.PROTECTION_TIME: 200, R.OVERLOAD_TORQUE: 80,
}  # fmt: skip


def _signed(value: float, bit: int) -> int:
    """Encodes a value as sign and magnitude, with the sign in `bit`."""
    return min(abs(round(value)), (1 << bit) - 1) | (1 << bit if value < 0 else 0)


class Servo:
    """One servo on one joint. `mount` is the offset of its horn from the joint's zero [encoder steps]."""

    def __init__(self, id: int, mount: int = 0) -> None:
        self.mount = mount
        self._memory = bytearray(SIZE)
        for register, value in FACTORY.items():
            self._memory[register] = value & 0xFF
            if register in WIDE:
                self._memory[register + 1] = value >> 8
        self._memory[R.ID] = id
        self.goal_writes = 0
        """Number of times a goal position was written."""
        self._saved = bytes(self._memory)
        self._loaded, self._temperature = 0.0, ROOM
        self.power_on()

    def power_on(self) -> None:
        """Resets the servo as after a power cycle: torque is off, and writes to the locked EEPROM are lost."""
        for cells in EEPROM:
            self._memory[cells.start : cells.stop] = self._saved[cells.start : cells.stop]
        self._memory[40:71] = bytes(31)
        self.set(R.TORQUE_LIMIT, self.get(R.MAX_TORQUE))
        self.set(R.LOCK, 1)
        self.set(R.PRESENT_VOLTAGE, 120)
        self._fresh = True
        self.error, self.setpoint, self._speed, self._pending = Error(0), 0.0, 0.0, (0, b"")

    def save(self) -> None:
        """Makes the current content of the EEPROM permanent."""
        self._saved = bytes(self._memory)

    @property
    def id(self) -> int:
        """Its id on the bus."""
        return self._memory[R.ID]

    def get(self, register: Register) -> int:
        """The value of a register, with its sign decoded."""
        value = self._memory[register] | (self._memory[register + 1] << 8 if register in WIDE else 0)
        bit = 1 << SIGN_BIT[register] if register in SIGN_BIT else 0
        return -(value & (bit - 1)) if bit and value & bit else value

    def set(self, register: Register, value: int) -> None:
        """Sets a register, also a read-only one, to a value clipped to its size."""
        largest = 0xFFFF if register in WIDE else 0xFF
        coded = _signed(value, SIGN_BIT[register]) if register in SIGN_BIT else min(max(value, 0), largest)
        self._memory[register] = coded & 0xFF
        if register in WIDE:
            self._memory[register + 1] = coded >> 8

    def read(self, address: int, count: int) -> bytes:
        """Reads registers for the bus; zeros after the last register."""
        return bytes(self._memory[address : address + count]).ljust(count, b"\0")

    def write(self, address: int, data: bytes) -> None:
        """Writes registers for the bus; read-only registers keep their values."""
        enabled, max_torque = self.torque, self.get(R.MAX_TORQUE)
        self.goal_writes += address <= R.GOAL_POSITION < address + len(data)
        for cell, byte in enumerate(data, address):
            if cell >= SIZE or any(cell in cells for cells in READ_ONLY):
                continue
            self._memory[cell] = byte
            if not self._memory[R.LOCK] and any(cell in cells for cells in EEPROM):
                self._saved = self._saved[:cell] + bytes((byte,)) + self._saved[cell + 1 :]
        if self.get(R.MAX_TORQUE) != max_torque:
            self.set(R.TORQUE_LIMIT, self.get(R.MAX_TORQUE))
        if self.torque and not enabled:
            self.error &= ~Error.OVERLOAD
            self._loaded, self._speed = 0.0, 0.0

    def register_write(self, address: int, data: bytes) -> None:
        """Stores a write until `action`."""
        self._pending = address, data

    def action(self) -> None:
        """Executes the stored write."""
        self.write(*self._pending)
        self._pending = 0, b""

    @property
    def torque(self) -> bool:
        """Whether torque is enabled."""
        return bool(self._memory[R.TORQUE_ENABLE])

    @property
    def max_torque(self) -> float:
        """The largest torque at present [N m]."""
        if not self.torque:
            return 0.0
        limit = min(self.get(R.TORQUE_LIMIT), self.get(R.MAX_TORQUE)) / 1000
        if Error.OVERLOAD in self.error:
            limit = min(limit, self.get(R.PROTECTIVE_TORQUE) / 100)
        return limit * STALL_TORQUE

    def to_position(self, angle: float) -> int:
        """The encoder position at a joint angle [rad], with the homing offset subtracted."""
        return (round(angle / TICK) + CENTRE + self.mount - self.get(R.HOMING_OFFSET)) % TICKS

    def to_angle(self, position: int) -> float:
        """The joint angle [rad] in [-pi, pi) at an encoder position."""
        ticks = position - CENTRE - self.mount + self.get(R.HOMING_OFFSET)
        return ((ticks + TICKS // 2) % TICKS - TICKS // 2) * TICK

    @property
    def goal(self) -> float:
        """The goal position [rad], within the position limits of its EEPROM."""
        low, high = self.get(R.MIN_POSITION), self.get(R.MAX_POSITION)
        return self.to_angle(min(max(self.get(R.GOAL_POSITION), low), high))

    def advance(self, dt: float) -> float:
        """Moves the setpoint of the position controller for `dt` [s] with the configured speed and acceleration.

        Returns:
            The setpoint [rad].
        """
        distance = self.goal - self.setpoint
        max_speed = min(abs(self.get(R.GOAL_VELOCITY)) * TICK or MAX_SPEED, MAX_SPEED)
        acceleration = self.get(R.ACCELERATION) * 100 * TICK or MAX_ACCELERATION
        speed = min(max_speed, math.sqrt(2 * acceleration * abs(distance)), abs(distance) / dt)
        change = math.copysign(speed, distance) - self._speed
        self._speed += min(max(change, -acceleration * dt), acceleration * dt)
        self.setpoint += self._speed * dt
        return self.setpoint

    def measure(self, angle: float, velocity: float, torque: float, dt: float) -> None:
        """Updates the servo after `dt` [s] with the joint's angle [rad], velocity [rad/s] and torque [N m]."""
        load = torque / STALL_TORQUE
        self._temperature += dt * (ROOM + WARMTH * load * load - self._temperature) / HEATING_TIME
        position = self.to_position(angle)
        _PRESENT.pack_into(
            self._memory, R.PRESENT_POSITION, position, _signed(velocity / TICK, 15), _signed(load * 1000, 10)
        )
        self._memory[R.PRESENT_TEMPERATURE] = round(self._temperature)
        self._memory[R.MOVING] = abs(velocity) > 50 * TICK
        self.set(R.PRESENT_CURRENT, round(abs(load) * 2700 / 6.5))
        self._protect(abs(load), dt)
        if not self.torque:
            self.setpoint, self._speed = angle, 0.0
        if self._fresh:  # the goal is the position at power-on; moving the joint by hand later does not change it
            self.set(R.GOAL_POSITION, position)
            self._fresh = False

    def _protect(self, load: float, dt: float) -> None:
        over = load > self.get(R.OVERLOAD_TORQUE) / 100
        self._loaded = self._loaded + dt if over else 0.0
        if self._loaded > self.get(R.PROTECTION_TIME) / 100:
            self.overload()
        hot = self._temperature > self.get(R.MAX_TEMPERATURE)
        self.error = self.error | Error.OVERHEAT if hot else self.error & ~Error.OVERHEAT
        self._memory[R.STATUS] = int(self.error)

    def overload(self) -> None:
        """Trips the overload protection: low torque, and the flag in each answer, until torque is enabled again."""
        self.error |= Error.OVERLOAD
