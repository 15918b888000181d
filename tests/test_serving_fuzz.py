"""Bad input: an error to its sender, while the server and another robot go on unharmed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from serving import ROBOT, Mark, PlainClient, message, served
from test_wire import VALUES
from websockets.exceptions import ConnectionClosed

from vla.common.msgpack_numpy import pack
from vla.errors import InputError
from vla.serving.observation import Keys, read_request

KEYS = Keys.of(ROBOT, {}, ())
NAN = np.array([np.nan, 0])


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with served(Mark(), max_bytes=2**20) as address, PlainClient(address) as other:
        yield address
        assert other.infer(message(8))["actions"][0, 0] == 8


@given(
    st.fixed_dictionaries(
        {},
        optional={
            name: VALUES
            for name in (
                "images",
                "state",
                "prompt",
                "vla/prefix",
                "vla/beyond",
                "vla/vjp",
                "vla/time",
                "vla/id",
                "images/top",
            )
        },
    )
)
def test_any_message_is_read_or_refused(fields: dict[str, Any]) -> None:
    with suppress(InputError):
        read_request(message() | fields, KEYS, ROBOT)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.binary(max_size=300)
    | st.text(max_size=50)
    | VALUES.map(pack)
    | st.integers(0, 150).map(lambda n: pack(message())[:n])
)
def test_a_bad_message_ends_its_own_connection_only(url: str, data: bytes | str) -> None:
    with PlainClient(url) as bad, PlainClient(url) as good:
        bad.socket.send(data)
        assert good.infer(message(6))["actions"][0, 0] == 6
        with pytest.raises(RuntimeError):
            bad.receive()
        with pytest.raises(ConnectionClosed, match="1011"):
            bad.socket.recv(30)


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"prompt": 3}, "prompt: the instruction must be text"),
        ({"images": {}}, "images/top: missing"),
        ({"images": {"top": np.zeros((4, 6, 3))}}, "images/top: an image is uint8"),
        ({"images": {"top": np.zeros((4, 6), np.uint8)}}, "images/top: an image is uint8"),
        ({"images": {"top": np.zeros((0, 6, 3), np.uint8)}}, "images/top: an image is uint8"),
        ({"images": {"top": np.zeros((1, 5000, 3), np.uint8)}}, "images/top: an image is uint8"),
        ({"state": np.zeros(3)}, r"state \(3,\) are not the 2 of arm"),
        ({"state": NAN}, "state: holds a number that is not finite"),
        ({"state": ["a", "b"]}, "state: must hold numbers"),
        ({"state": [[1], [1, 2]]}, "state: lists of different lengths"),
        ({"vla/prefix": np.zeros((1, 3))}, "vla/prefix: shape"),
        ({"vla/time": float("inf")}, "vla/time: not a finite"),
        ({"vla/id": [1]}, "vla/id: neither"),
        ({"prompt": "break"}, "the policy failed: RuntimeError"),
    ],
)
def test_the_error_names_the_key(url: str, fields: dict[str, Any], error: str) -> None:
    with PlainClient(url) as robot, pytest.raises(RuntimeError, match=error):
        robot.infer(message() | fields)


def test_a_message_too_large_is_cut_off(url: str) -> None:
    with PlainClient(url) as robot, pytest.raises(ConnectionClosed, match="1009"):
        robot.infer(message() | {"images": {"top": np.zeros((700, 700, 3), np.uint8)}})
