"""TFRecord files and the `tf.train.Example`s in them, without TensorFlow.

A record is a little-endian u64 length, the masked CRC-32C of those 8 bytes, the payload, and the payload's masked
CRC-32C, where mask(c) = rotate_right(c, 15) + 0xa282ead8 modulo 2^32.

An Example is the protobuf message
    Example   {1: Features}              BytesList {1: repeated bytes}
    Features  {1: map<string, Feature>}  FloatList {1: repeated float, packed}
    Feature   {1: BytesList | 2: FloatList | 3: Int64List}      Int64List {1: repeated varint, packed}

Sources: TensorFlow's documentation of TFRecord; protobuf's of its wire format.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np
from crc32c import crc32c
from jaxtyping import Int64

from vla.datasets.source_files import check_fetched
from vla.errors import InputError

HEADER, CHECKSUM = struct.Struct("<QI"), struct.Struct("<I")
LENGTH_BYTES = 8
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
FIXED = {FIXED64: 8, FIXED32: 4}
BYTES_LIST, FLOAT_LIST, INT64_LIST = 1, 2, 3

type Values = list[bytes] | np.ndarray
"""The values of a Feature: byte strings, or an array of float32 or int64."""


def masked_crc(data: bytes | memoryview) -> int:
    """The masked CRC-32C of TFRecord."""
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def records(path: Path) -> Iterator[tuple[int, memoryview]]:
    """The byte offset and the payload of each record, in order. The file is memory-mapped, so payloads load on access.

    Only the lengths are checked. `read_record` checks payloads.

    Raises:
        InputError: the file cannot be read, ends inside a record, or a length does not match its checksum.
    """
    check_fetched(path)
    try:
        size = path.stat().st_size
        view = memoryview(np.memmap(path, np.uint8, "r") if size else b"")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    offset = 0
    while offset < size:
        start = offset + HEADER.size
        end = start + _length(view[offset:start], path, offset)
        if end + CHECKSUM.size > size:
            raise InputError(f"{path} is cut short: its record at byte {offset} ends beyond the file, fetch it again")
        yield offset, view[start:end]
        offset = end + CHECKSUM.size


def read_record(path: Path, offset: int) -> bytes:
    """The payload of the record at byte `offset`. Raises InputError if it does not match its checksum."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            payload = file.read(_length(file.read(HEADER.size), path, offset))
            checksum = file.read(CHECKSUM.size)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    if len(checksum) < CHECKSUM.size:
        raise InputError(f"{path} is cut short: its record at byte {offset} ends beyond the file, fetch it again")
    if CHECKSUM.unpack(checksum)[0] != masked_crc(payload):
        raise InputError(f"{path}: the record at byte {offset} does not match its checksum: fetch the file again")
    return payload


def _length(header: bytes | memoryview, path: Path, offset: int) -> int:
    if len(header) < HEADER.size:
        raise InputError(f"{path} is cut short: its record at byte {offset} has no length, fetch it again")
    length, crc = HEADER.unpack(header)
    if crc != masked_crc(header[:LENGTH_BYTES]):
        raise InputError(f"{path}: the length at byte {offset} does not match its checksum: not a TFRecord, or damaged")
    return length


def parse_example(payload: bytes | memoryview, names: Collection[str] | None = None) -> dict[str, Values]:
    """The features of a serialized `tf.train.Example` by name, restricted to `names` unless that is None.

    Raises ValueError if the payload is not an Example.
    """
    values: dict[str, Values] = {}
    for _, features in _fields(memoryview(payload)):
        for _, entry in _fields(features):
            fields = dict(_fields(entry))
            name = bytes(fields.get(1, b"")).decode()
            if names is None or name in names:
                values[name] = _values(fields.get(2, memoryview(b"")))
    return values


def _values(feature: memoryview) -> Values:
    for kind, listed in _fields(feature):
        entries = [entry for number, entry in _fields(listed) if number == 1]
        if kind == BYTES_LIST:
            return [bytes(entry) for entry in entries]
        # Concatenated, packed and unpacked numbers have the same encoding.
        if kind == FLOAT_LIST:
            return np.frombuffer(b"".join(entries), "<f4")
        if kind == INT64_LIST:
            return _varints(b"".join(entries))
    return []


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """The number and the bytes of each field of a protobuf message."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, wire = tag >> 3, tag & 7
        start = at
        if wire == VARINT:
            _, at = _varint(message, at)
        elif wire == BYTES:
            size, start = _varint(message, at)
            at = start + size
        elif wire in FIXED:
            at += FIXED[wire]
        else:
            raise ValueError(f"protobuf has no wire type {wire}")
        if at > len(message):
            raise ValueError("a protobuf field ends beyond its message")
        yield number, message[start:at]


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """The varint at `at` (seven bits per byte, lowest first), and the position after it."""
    value = shift = 0
    while at < len(data):
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise ValueError("a protobuf number has no end")


def _varints(data: bytes) -> Int64[np.ndarray, "n"]:
    raw = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(raw < 0x80)
    if len(raw) and (not len(ends) or ends[-1] + 1 < len(raw)):
        raise ValueError("a protobuf number has no end")
    starts = np.concatenate([[0], ends[:-1] + 1])[: len(ends)]
    lengths = ends - starts + 1
    values = np.zeros(len(ends), np.uint64)
    for k in range(lengths.max(initial=0)):
        longer = lengths > k
        values[longer] |= (raw[starts[longer] + k] & np.uint64(0x7F)) << np.uint64(7 * k)
    return values.view(np.int64)
