"""An emulated bus of servos, with injected faults."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TextIO

import numpy as np

from vla.robots.feetech_emulator.packets import BROADCAST, Instruction, Packet, Parser, encode
from vla.robots.feetech_emulator.servo import Register, Servo


@dataclass
class Faults:
    """Faults of the bus; they may be changed at any time."""

    mute: set[int] = field(default_factory=set)
    """Ids of servos that neither receive nor answer."""
    corrupt: float = 0.0
    """Probability that an answer has a wrong checksum."""
    drop: float = 0.0
    """Probability that an answer loses a byte."""
    delay: float = 0.0
    """Additional delay of answers [s]."""


class Bus:
    """The servos on one bus. A port only needs `answer`.

    `log` receives a JSON line for each packet that wrote goal positions: its arrival time `t` [s, monotonic clock], and
    `goals` [encoder steps] by the ids of the servos that received it. It needs a large buffer: writing blocks the bus.
    """

    def __init__(self, servos: Sequence[Servo], seed: int = 0) -> None:
        self.servos, self.faults = tuple(servos), Faults()
        self.log: TextIO | None = None
        self._parser, self._rng = Parser(), np.random.default_rng(seed)

    def power_on(self) -> None:
        """Resets the servos as after a power cycle."""
        self._parser.clear()
        for servo in self.servos:
            servo.power_on()

    def answer(self, data: bytes) -> bytes:
        """The answer to the next bytes on the bus; a request may arrive in pieces."""
        at, answers = time.monotonic(), bytearray()
        for packet in self._parser.feed(data):
            before = [servo.goal_writes for servo in self.servos]
            for reply in self._serve(packet):
                answers += self._corrupted(encode(reply))
            commanded = [servo for servo, n in zip(self.servos, before, strict=True) if servo.goal_writes > n]
            if commanded and self.log is not None:
                goals = {servo.id: servo.get(Register.GOAL_POSITION) for servo in commanded}
                self.log.write(json.dumps({"t": at, "goals": goals}) + "\n")
        return bytes(answers)

    def _serve(self, packet: Packet) -> Iterable[Packet]:
        code, parameters = packet.code, packet.parameters
        if code == Instruction.SYNC_READ and len(parameters) > 2:
            for id in parameters[2:]:
                yield from (_status(s, s.read(parameters[0], parameters[1])) for s in self._addressed(id))
        elif code == Instruction.SYNC_WRITE and len(parameters) > 2:
            address, width = parameters[:2]
            for at in range(2, len(parameters) - width, width + 1):
                for servo in self._addressed(parameters[at]):
                    servo.write(address, parameters[at + 1 : at + 1 + width])
        else:
            for servo in self._addressed(packet.id):
                reply = _execute(servo, code, parameters)
                if reply is not None and (packet.id != BROADCAST or code == Instruction.PING):
                    yield reply

    def _addressed(self, id: int) -> list[Servo]:
        return [s for s in self.servos if id in (s.id, BROADCAST) and s.id not in self.faults.mute]

    def _corrupted(self, answer: bytes) -> bytes:
        if self._rng.random() < self.faults.corrupt:
            answer = answer[:-1] + bytes((answer[-1] ^ 0x55,))
        if self._rng.random() < self.faults.drop:
            at = int(self._rng.integers(len(answer)))
            answer = answer[:at] + answer[at + 1 :]
        return answer


def _execute(servo: Servo, code: int, parameters: bytes) -> Packet | None:
    data = b""
    if code == Instruction.READ and len(parameters) == 2:
        data = servo.read(parameters[0], parameters[1])
    elif code == Instruction.WRITE and len(parameters) > 1:
        servo.write(parameters[0], parameters[1:])
    elif code == Instruction.REG_WRITE and len(parameters) > 1:
        servo.register_write(parameters[0], parameters[1:])
    elif code == Instruction.ACTION:
        servo.action()
    elif code != Instruction.PING:
        return None
    return _status(servo, data)


def _status(servo: Servo, data: bytes) -> Packet:
    return Packet(servo.id, int(servo.error), data)
