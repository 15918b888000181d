"""The codec: what goes in comes out, and what is not of the protocol is refused before memory is taken."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import hypothesis.strategies as st
import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra import numpy as hnp

from vla.common.msgpack_numpy import pack, unpack
from vla.errors import InputError

DTYPES = st.one_of(
    hnp.boolean_dtypes(),
    hnp.integer_dtypes(endianness="?"),
    hnp.floating_dtypes(endianness="?"),
    hnp.unicode_string_dtypes(max_len=8),
)
ARRAYS = hnp.arrays(DTYPES, hnp.array_shapes(min_dims=0, min_side=0, max_dims=4, max_side=4))
PLAIN = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text()
VALUES = st.recursive(PLAIN | ARRAYS, lambda v: st.lists(v, max_size=4) | st.dictionaries(st.text(), v, max_size=4))


def same(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray):
        return isinstance(b, np.ndarray) and (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return type(a) is type(b) and a == b


@given(VALUES)
def test_round_trip(value: Any) -> None:
    assert same(value, unpack(pack(value)))


@given(hnp.arrays(hnp.integer_dtypes() | hnp.floating_dtypes(sizes=(16, 32, 64)), 1))
def test_scalars_round_trip(array: np.ndarray) -> None:
    back = unpack(pack(array[0]))
    assert np.asarray(back).dtype == array.dtype.newbyteorder("=")  # a float64 is a float to msgpack
    np.testing.assert_array_equal(back, array[0])


@given(st.binary(max_size=200))
def test_noise_is_refused_or_read(data: bytes) -> None:
    with suppress(InputError):
        unpack(data)


@given(VALUES.filter(lambda v: isinstance(v, dict | np.ndarray)), st.data())
def test_truncated_is_refused(value: Any, data: st.DataObject) -> None:
    packed = pack(value)
    with pytest.raises(InputError):
        unpack(packed[: data.draw(st.integers(0, len(packed) - 1))])


@pytest.mark.parametrize(
    "value", [np.zeros(2, complex), np.array([None]), np.zeros(2, "V3"), np.zeros(1, "f4,f4"), object(), {1, 2}]
)
def test_kinds_outside_the_protocol_are_not_packed(value: Any) -> None:
    with pytest.raises(InputError):
        pack(value)


@pytest.mark.parametrize(
    ("dtype", "shape", "data"),
    [
        ("|O", [1], b"\0" * 8),
        ("<c8", [1], b"\0" * 8),
        ("|V8", [1], b"\0" * 8),
        ("f4,f4", [1], b"\0" * 8),
        ("<M8", [1], b"\0" * 8),
        ("<f3", [1], b"\0" * 3),
        ("<f4", [2**40, 2**40], b""),
        ("<f4", [2**62, 4], b""),
        ("<f4", [-1, -1], b"\0" * 4),
        ("<f4", [1] * 40, b"\0" * 4),
        ("<f4", [2], b"\0" * 4),
        ("<f4", [True], b"\0" * 4),
        ("<f4", "ab", b"\0" * 4),
        ("<f4", None, b"\0" * 4),
        ("<f4", [1], "text"),
        ("<U0", [2**30], b""),
        (7, [1], b"\0"),
    ],
)
def test_arrays_that_lie_are_refused(dtype: Any, shape: Any, data: Any) -> None:
    with pytest.raises(InputError):
        unpack(msgpack.packb({b"__ndarray__": True, b"data": data, b"dtype": dtype, b"shape": shape}))


@pytest.mark.parametrize(
    "message",
    [
        b"\xdd\xff\xff\xff\xff",  # a list of 4 billion
        b"\xdf\xff\xff\xff\xff",  # a map
        b"\xc6\xff\xff\xff\xff",  # bytes
        b"\xc7\x04\x01abcd",  # an extension
        b"\x91" * 5000,  # nested
        msgpack.packb([[[] for _ in range(200)] for _ in range(100)]),  # many small ones
        msgpack.packb("x" * 100_000),
        msgpack.packb({b"__npgeneric__": True, b"data": [1], b"dtype": "<f4"}),
        msgpack.packb({b"__npgeneric__": True, b"data": 2**40, b"dtype": "|u1"}),
        msgpack.packb({b"__ndarray__": True}),
        b"\x80\x80",
    ],
)
def test_huge_and_malformed_messages_are_refused(message: bytes) -> None:
    with pytest.raises(InputError):
        unpack(message)
