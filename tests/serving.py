"""A server in a thread of its own, and a client written from the protocol alone."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import msgpack
import numpy as np
from scripted_policy import RowByRow
from websockets.sync.client import connect

from vla.embodiment import Embodiment
from vla.policies.policy import Policy
from vla.serving.observation import Keys
from vla.serving.server import PolicyServer
from vla.types import ActionChunk, Observation, RTCPrefix

ROBOT = Embodiment("arm", ("top",), ("x [m]", "y [m]"), ("x [m]", "y [m]"), (-9.0, -9.0), (9.0, 9.0), 10.0)


class Mark(RowByRow):
    """Actions that tell which observation they are of: the state, the mean of the image, the instruction's length."""

    def __init__(self, embodiment: Embodiment = ROBOT) -> None:
        self.embodiment = embodiment
        self.gate, self.entered = threading.Event(), threading.Semaphore(0)
        self.gate.set()
        self.seen: list[float] = []

    def reset(self) -> None:
        """Nothing is remembered."""

    def predict(self, observation: Observation, *, prefix: RTCPrefix | None = None) -> ActionChunk | None:
        self.seen.append(float(observation.state[0]))
        self.entered.release()
        assert self.gate.wait(30)
        if observation.instruction == "none":
            return None
        if observation.instruction == "break":
            raise RuntimeError("broken")
        light = float(np.mean([image.mean() for image in observation.images.values()]))
        rows = np.array([[*observation.state[:2]], [light, len(observation.instruction)]], np.float64)
        return ActionChunk(rows if prefix is None else np.concatenate([prefix.committed, rows]), observation.time, 0.1)


@contextmanager
def served(policy: Policy, *, port: int = 0, keys: Keys | None = None, **options: Any) -> Iterator[str]:
    """Serves `policy` inside the block, which is given the URL; drains at its end."""
    loop, started = asyncio.new_event_loop(), threading.Event()
    stop, address, failed = asyncio.Event(), [0], list[BaseException]()

    async def run() -> None:
        server = PolicyServer(policy, keys or Keys.of(policy.embodiment, {}, ()), **options)
        async with server.listen("127.0.0.1", port) as address[0]:
            started.set()
            await stop.wait()

    def work() -> None:
        try:
            loop.run_until_complete(run())
        except BaseException as error:
            failed.append(error)
        finally:
            started.set()
            loop.close()

    thread = threading.Thread(target=work)
    thread.start()
    assert started.wait(30)
    if failed:
        raise failed[0]
    try:
        yield f"ws://127.0.0.1:{address[0]}"
    finally:
        if thread.is_alive():
            loop.call_soon_threadsafe(stop.set)
        thread.join(60)
        assert not thread.is_alive() and not failed


def encode(value: Any) -> Any:
    return {b"__ndarray__": True, b"data": value.tobytes(), b"dtype": value.dtype.str, b"shape": value.shape}


def decode(value: Mapping[Any, Any]) -> Any:
    if b"__ndarray__" in value:
        return np.ndarray(buffer=value[b"data"], dtype=np.dtype(value[b"dtype"]), shape=value[b"shape"])
    return value


class PlainClient:
    """What a robot of openpi does, and nothing of ours."""

    def __init__(self, url: str, key: str = "") -> None:
        headers = {"Authorization": f"Api-Key {key}"} if key else None
        self.socket = connect(url, compression=None, max_size=None, additional_headers=headers, proxy=None).__enter__()
        self.metadata = self.receive()

    def receive(self) -> Any:
        answer = self.socket.recv(30)
        if isinstance(answer, str):
            raise RuntimeError(answer)
        return msgpack.unpackb(answer, object_hook=decode)

    def send(self, message: Any) -> None:
        self.socket.send(msgpack.packb(message, default=encode))

    def infer(self, message: Any) -> Any:
        self.send(message)
        return self.receive()

    def __enter__(self) -> PlainClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()


def message(number: int = 1, **fields: Any) -> dict[str, Any]:
    """An observation under our own names."""
    image = np.full((4, 6, 3), number % 256, np.uint8)
    return {"images": {"top": image}, "state": np.array([number, 2.0]), "prompt": "go", **fields}
