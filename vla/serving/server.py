"""openpi's policy server: one policy serves several robots in turn, each with its latest observation.

Protocol: `vla.common.msgpack_numpy` over WebSocket. On connection the server sends its metadata. It answers each
observation by a result, or by a text with an error, after which it closes the connection with 1011.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, replace
from http import HTTPStatus
from ipaddress import ip_address
from typing import Any

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request as HttpRequest
from websockets.http11 import Response

from vla import __version__
from vla.common.msgpack_numpy import pack, unpack
from vla.control.inference import Request, predict
from vla.errors import InputError
from vla.policies.data_summary import data_of
from vla.policies.history import FrameHistory, history_of
from vla.policies.policy import BatchPolicy, Policy, guides, takes_fewer_cameras
from vla.serving.metrics import Metrics
from vla.serving.observation import ID, LEFTOVER, PAST, PREFIX, RESET, TIME, VJP, Keys, read_request
from vla.types import ActionChunk

LOG = logging.getLogger(__name__)
DRAIN = 30.0
"""Time [s] to answer pending observations at shutdown."""


def check_host(host: str, key: str) -> None:
    """Checks that a host reachable by others is protected by a key.

    Raises:
        InputError: if it is not.
    """
    try:
        local = ip_address(host).is_loopback
    except ValueError:
        local = host == "localhost"
    if not local and not key:
        raise InputError(f"host={host} is open to others: set a key (VLA_API_KEY or key_file=), or serve on 127.0.0.1")


def _optional_keys(policy: Policy) -> tuple[str, ...]:
    """Message keys that depend on the policy's features."""
    return (*((LEFTOVER, VJP) if guides(policy) else ()), *((PAST, RESET) if history_of(policy) else ()))


class _Client:
    """The latest observation of one robot; it replaces an older one that was not processed."""

    def __init__(self, policy: Policy) -> None:
        self.latest: bytes | str | None = None
        self.history = FrameHistory.of(policy)
        """Past frames, for a robot that does not send them."""
        self.arrived = asyncio.Event()
        self.total_ms: float | None = None

    def take(self) -> bytes | str:
        assert self.latest is not None
        message, self.latest = self.latest, None
        self.arrived.clear()
        return message


class PolicyServer:
    """Serves `policy` to several robots.

    Observations stay encoded until the policy's single thread takes them. So reading never blocks, and replaced
    observations are not decoded. The lock is first come, first served: no robot gets more turns by sending more.

    Args:
        policy: The policy, without memory between chunks (a BatchPolicy).
        keys: Keys of the messages.
        statistics_hash: Hash of the normalization statistics, for the metadata.
        tasks: Tasks that the policy was trained on, for the metadata.
        weights: Digest of the weights, for the metadata.
        key: API key that clients must send; empty for none.
        max_clients: Largest number of connections.
        max_bytes: Largest size of a message.

    Raises:
        InputError: for a policy that is no BatchPolicy.
    """

    def __init__(
        self,
        policy: Policy,
        keys: Keys,
        *,
        statistics_hash: str = "",
        tasks: Sequence[str] = (),
        weights: str | None = None,
        key: str = "",
        max_clients: int = 16,
        max_bytes: int = 32 * 2**20,
    ) -> None:
        if not isinstance(policy, BatchPolicy):
            raise InputError(f"{type(policy).__name__} has memory between chunks, so it cannot serve several robots")
        self._policy, self._keys, self._key = policy, keys, key.encode()
        self._max_clients, self._max_bytes = max_clients, max_bytes
        self.metrics = Metrics()
        self._turn, self._idle = asyncio.Lock(), asyncio.Event()
        self._idle.set()
        self._owed, self._draining = 0, False
        self.stuck = False
        """Whether the policy was still busy at the end of the time for shutdown."""
        self._thread = ThreadPoolExecutor(1, "policy")
        self.metadata: dict[str, Any] = {
            "server": f"vla {__version__}",
            "embodiment": policy.embodiment.to_dict(),
            "statistics_hash": statistics_hash,
            "tasks": list(tasks),
            "weights": weights,
            "keys": asdict(keys),
            "history": list(history_of(policy)),
            "fewer_cameras": takes_fewer_cameras(policy),
            "data": data_of(policy).to_dict(),
            "extras": [PREFIX, TIME, ID, *_optional_keys(policy)],
        }

    @asynccontextmanager
    async def listen(self, host: str, port: int) -> AsyncIterator[int]:
        """Serves inside the block and yields the port (chosen by the system for 0).

        At the end of the block, new observations are ignored, pending ones are answered, and connections close with
        1001.
        """
        check_host(host, self._key.decode())
        server: Server = await serve(
            self._robot,
            host,
            port,
            process_request=self._request,
            origins=[None],  # browsers always send an origin: web pages must not drive a robot
            compression=None,
            max_size=self._max_bytes,
            max_queue=2,
            server_header=None,
        )
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            self._draining = True
            try:
                await asyncio.wait_for(self._idle.wait(), DRAIN)
            except TimeoutError:
                self.stuck = True
            server.close()
            await server.wait_closed()
            self._thread.shutdown(wait=False)

    def _request(self, connection: ServerConnection, request: HttpRequest) -> Response | None:
        """Answers HTTP requests; None continues with the WebSocket handshake."""
        path = request.path.partition("?")[0]
        if path == "/healthz":
            if self._draining:
                return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, "draining\n")
            return connection.respond(HTTPStatus.OK, "OK\n")
        sent = "".join(request.headers.get_all("Authorization")).encode()
        if self._key and not hmac.compare_digest(sent, b"Api-Key " + self._key):
            self.metrics.refused += 1
            return connection.respond(HTTPStatus.UNAUTHORIZED, "wrong or missing key: Authorization: Api-Key KEY\n")
        if path == "/metrics":
            return connection.respond(HTTPStatus.OK, self.metrics.text())
        if self._draining or self.metrics.clients >= self._max_clients:
            self.metrics.refused += 1
            return connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, "no place for another robot\n")
        return None

    async def _robot(self, socket: ServerConnection) -> None:
        """Handles the connection of one robot."""
        client = _Client(self._policy)
        self.metrics.clients += 1
        reader = asyncio.create_task(self._read(socket, client))
        answerer = asyncio.create_task(self._answers(socket, client))
        try:
            done, _ = await asyncio.wait((reader, answerer), return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                with suppress(ConnectionClosed):
                    await task
        finally:
            self.metrics.clients -= 1
            for task in (reader, answerer):
                task.cancel()
            await asyncio.gather(reader, answerer, return_exceptions=True)
            if client.latest is not None:
                self._settle()

    async def _read(self, socket: ServerConnection, client: _Client) -> None:
        async for message in socket:
            if self._draining:
                continue
            if client.latest is None:
                self._owed += 1
                self._idle.clear()
            else:
                self.metrics.replaced += 1
            client.latest = message
            client.arrived.set()

    def _settle(self) -> None:
        """Decrements the number of pending observations."""
        self._owed -= 1
        if not self._owed:
            self._idle.set()

    async def _answers(self, socket: ServerConnection, client: _Client) -> None:
        await socket.send(pack(self.metadata))
        while True:
            await client.arrived.wait()
            started = time.perf_counter()
            async with self._turn:
                message = client.take()
                loop = asyncio.get_running_loop()
                # The thread continues when its robot disconnects: the next robot must still wait for it.
                work = loop.run_in_executor(self._thread, self._predict, message, client)
                try:
                    answer, outcome, seconds = await asyncio.shield(work)
                except asyncio.CancelledError:
                    self._settle()
                    raise
            try:
                self.metrics.answers[outcome] += 1
                self.metrics.inferences += 1
                self.metrics.seconds += seconds
                await socket.send(answer)
                client.total_ms = 1e3 * (time.perf_counter() - started)
                if isinstance(answer, str):
                    await socket.close(1011, "see the text before")
                    return
            finally:
                self._settle()

    def _predict(self, message: bytes | str, client: _Client) -> tuple[bytes | str, str, float]:
        """Runs in the policy's thread; returns the answer, its outcome for the metrics, and the inference time [s]."""
        started = time.perf_counter()
        try:
            if isinstance(message, str):
                raise InputError("an observation is a binary message, not text")
            request, name = self._request_of(unpack(message), client)
            prefix = request.prefix
            if prefix is not None and prefix.leftover is not None and not guides(self._policy):
                raise InputError(f"{LEFTOVER} needs a flow head, which this policy does not have")
            started = time.perf_counter()
            (chunk,) = predict(self._policy, [request])
            seconds = time.perf_counter() - started
            if chunk is None and name is None:
                return "the policy has no valid chunk: hold the robot still", "none", seconds
            result = self._result(chunk, name, 1e3 * seconds, client.total_ms)
            return pack(result), "none" if chunk is None else "chunk", seconds
        except InputError as error:
            return str(error), "input_error", time.perf_counter() - started
        except Exception as error:  # a failure for one robot must not affect the others
            LOG.exception("the policy failed")
            return f"the policy failed: {type(error).__name__}", "failure", time.perf_counter() - started

    def _request_of(self, message: Any, client: _Client) -> tuple[Request, int | str | None]:
        """`read_request`, with past frames from the message, or from the client's earlier observations."""
        fewer, moments = takes_fewer_cameras(self._policy), len(history_of(self._policy))
        body = self._policy.embodiment
        request, name = read_request(message, self._keys, body, fewer_cameras=fewer, moments=moments)
        if not isinstance(reset := message.get(RESET, False), bool):
            raise InputError(f"{RESET} is true or false")
        if reset:
            client.history.reset()
        with_history = client.history.with_past_frames(request.observation)
        return (request if request.observation.past else replace(request, observation=with_history)), name

    def _result(
        self, chunk: ActionChunk | None, name: int | str | None, infer_ms: float, total_ms: float | None
    ) -> Mapping[str, Any]:
        """The result of openpi's protocol. For a client that sent an id, it adds the id and the chunk's times.

        Without a chunk, its actions are None.
        The actions are its only array: openpi's ActionChunkBroker slices every array along the horizon.
        """
        timing = {"infer_ms": infer_ms} | ({} if total_ms is None else {"prev_total_ms": total_ms})
        result: dict[str, Any] = {"policy_timing": {"infer_ms": infer_ms}, "server_timing": timing}
        if name is not None:
            result |= {ID: name}
        if chunk is None:
            return result | {"actions": None}
        if name is not None:
            result |= {"vla/start": chunk.start, "vla/dt": chunk.dt}
        return result | {"actions": chunk.actions}
