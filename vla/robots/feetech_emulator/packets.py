"""Feetech's protocol 0: `FF FF id length code parameters… checksum`, little-endian.

The code is an instruction in a request, and the servo's error flags in an answer. The length counts code, parameters
and checksum. Source: Feetech's STS3215 manual, chapter "communication protocol".
"""

from __future__ import annotations

from enum import IntEnum, IntFlag
from typing import NamedTuple

HEADER = b"\xff\xff"
BROADCAST = 0xFE
MAX_LENGTH = 250


class Instruction(IntEnum):
    """Instructions of a request."""

    PING = 0x01
    READ = 0x02
    WRITE = 0x03
    REG_WRITE = 0x04
    ACTION = 0x05
    SYNC_READ = 0x82
    SYNC_WRITE = 0x83


class Error(IntFlag):
    """Error flags of an answer."""

    VOLTAGE = 1
    ANGLE = 2
    OVERHEAT = 4
    OVERCURRENT = 8
    OVERLOAD = 32


class Packet(NamedTuple):
    """A request or an answer."""

    id: int
    code: int
    parameters: bytes = b""


def encode(packet: Packet) -> bytes:
    """The bytes of a packet."""
    body = bytes((packet.id, len(packet.parameters) + 2, packet.code)) + packet.parameters
    return HEADER + body + bytes((checksum(body),))


def checksum(body: bytes) -> int:
    """The checksum of the bytes between header and checksum."""
    return ~sum(body) & 0xFF


class Parser:
    """Finds the packets in a stream of bytes; other bytes and corrupted packets are skipped byte by byte."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def feed(self, data: bytes) -> list[Packet]:
        """Adds `data` and returns the packets that are complete."""
        buffer = self._bytes
        buffer += data
        packets: list[Packet] = []
        while (start := buffer.find(HEADER)) >= 0:
            del buffer[:start]
            if len(buffer) < 4:
                return packets
            length = buffer[3]
            if buffer[2] == 0xFF or not 2 <= length <= MAX_LENGTH:
                del buffer[0]
            elif len(buffer) < length + 4:
                return packets
            elif checksum(bytes(buffer[2 : length + 3])) != buffer[length + 3]:
                del buffer[0]
            else:
                packets.append(Packet(buffer[2], buffer[4], bytes(buffer[5 : length + 3])))
                del buffer[: length + 4]
        del buffer[: -1 if buffer.endswith(b"\xff") else len(buffer)]
        return packets

    def clear(self) -> None:
        """Drops an incomplete packet."""
        self._bytes.clear()
