"""msgpack with numpy arrays, in the format of openpi's policy server and clients. It does not use pickle.

An array is a map `{b"__ndarray__": True, b"data": bytes, b"dtype": dtype.str, b"shape": shape}`, a numpy scalar
`{b"__npgeneric__": True, b"data": value, b"dtype": dtype.str}`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import prod
from typing import Any

import msgpack
import numpy as np

from vla.errors import InputError

# Kinds V, O and c are not part of the protocol; observations contain neither times nor records.
DTYPE = re.compile(r"[<>|=]?(?:[biuf]\d{1,2}|[SU]\d{1,5})")
MAX_DIMS, MAX_SIDE, MAX_CONTAINERS, MAX_ITEMS, MAX_TEXT = 8, 2**31 - 1, 1024, 256, 65536
ARRAY, SCALAR = (
    frozenset((b"__ndarray__", b"data", b"dtype", b"shape")),
    frozenset((b"__npgeneric__", b"data", b"dtype")),
)


def pack(value: Any) -> bytes:
    """Encodes maps, lists, text, numbers, numpy arrays and scalars. Raises InputError for other types."""
    try:
        return msgpack.packb(value, default=_encode)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"cannot send this: {error}") from error


def unpack(data: bytes) -> Any:
    """Decodes a message of `pack`; arrays are read-only views of `data`.

    Lengths are checked against limits and against `data` before memory is allocated.

    Raises:
        InputError: The message is invalid.
    """
    found = 0

    def counted(value: Any) -> Any:
        nonlocal found
        found += 1
        if found > MAX_CONTAINERS:
            raise InputError(f"more than {MAX_CONTAINERS} lists and maps in a message")
        return _decode(value) if isinstance(value, dict) else value

    try:
        return msgpack.unpackb(
            data,
            object_hook=counted,
            list_hook=counted,
            max_array_len=MAX_ITEMS,
            max_map_len=MAX_ITEMS,
            max_str_len=MAX_TEXT,
            max_bin_len=len(data),
            max_ext_len=0,
        )
    except InputError:
        raise
    except Exception as error:  # the exceptions of msgpack and numpy have no common base class
        raise InputError(f"not a message of this protocol: {error or type(error).__name__}") from error


def _encode(value: Any) -> Any:
    if not isinstance(value, np.ndarray | np.generic):
        raise TypeError(f"{type(value).__name__} has no form in msgpack")
    if not DTYPE.fullmatch(value.dtype.str):
        raise TypeError(f"dtype {value.dtype} is not sent")
    if isinstance(value, np.ndarray):
        return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}
    return {b"__npgeneric__": True, b"data": value.item(), b"dtype": value.dtype.str}


def _decode(value: dict[Any, Any]) -> Any:
    if b"__ndarray__" in value:
        return _array(value)
    if b"__npgeneric__" in value:
        dtype, item = _dtype(value, SCALAR), value[b"data"]
        if not isinstance(item, bool | int | float | str | bytes):
            raise InputError(f"a numpy scalar holds a {type(item).__name__}")
        return dtype.type(item)
    return value


def _array(value: Mapping[Any, Any]) -> np.ndarray:
    dtype, shape, data = _dtype(value, ARRAY), value[b"shape"], value[b"data"]
    if not isinstance(shape, list | tuple) or len(shape) > MAX_DIMS or not isinstance(data, bytes):
        raise InputError(f"an array needs bytes and a shape of at most {MAX_DIMS} sides")
    if not all(type(side) is int and 0 <= side <= MAX_SIDE for side in shape):
        raise InputError(f"an array cannot have the shape {shape}")
    if len(data) != prod(shape) * dtype.itemsize:
        raise InputError(f"{len(data)} bytes are no array of shape {shape} and dtype {dtype}")
    return np.ndarray(tuple(shape), dtype, data)


def _dtype(value: Mapping[Any, Any], keys: frozenset[bytes]) -> np.dtype[Any]:
    text = value.get(b"dtype")
    if set(value) != keys or not isinstance(text, str) or not DTYPE.fullmatch(text):
        raise InputError(f"an array or scalar of dtype {text!r} is not taken")
    dtype = np.dtype(text)
    if dtype.itemsize == 0:
        raise InputError(f"an array or scalar of dtype {text!r} holds nothing")
    return dtype
