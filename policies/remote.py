"""A policy on a server (`vla serve`), over openpi's protocol."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI
from websockets.sync.client import ClientConnection, connect

from vla.common.msgpack_numpy import pack, unpack
from vla.embodiment import Embodiment
from vla.errors import InputError
from vla.policies.data_summary import DataSummary
from vla.types import ActionChunk, Observation, RTCPrefix

KEY_VARIABLE = "VLA_API_KEY"
BACKOFF = (0.1, 5.0)
"""Delay before the first reconnection, doubled after each attempt, and its maximum [s]."""


def api_key(key_file: str | None = None) -> str:
    """The API key in `key_file`, else in the environment variable VLA_API_KEY; empty for none.

    Raises:
        InputError: if the file is empty or cannot be read.
    """
    if key_file is None:
        return os.environ.get(KEY_VARIABLE, "").strip()
    try:
        key = Path(key_file).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"key_file={key_file}: {error}") from error
    if not key:
        raise InputError(f"key_file={key_file} is empty")
    return key


def server_metadata(url: str, key_file: str | None = None, timeout: float = 10.0) -> dict[str, Any]:
    """The metadata that a server sends on connection.

    Raises:
        InputError: if there is no `vla serve` at `url`.
    """
    key = api_key(key_file)
    socket = _open(url, {"Authorization": f"Api-Key {key}"} if key else None, timeout)
    try:
        metadata = unpack(message) if isinstance(message := socket.recv(timeout), bytes) else None
    except (TimeoutError, ConnectionClosed, TypeError, InputError) as error:
        raise InputError(f"{url}: {error or type(error).__name__}") from error
    finally:
        socket.close()
    if not isinstance(metadata, dict):
        raise InputError(f"{url}: the server sends no metadata: it is not `vla serve`")
    return metadata


def _open(url: str, headers: dict[str, str] | None, timeout: float) -> ClientConnection:
    """Opens a connection. Raises InputError."""
    try:
        return connect(
            url,
            additional_headers=headers,
            compression=None,
            max_size=2**26,
            proxy=None,
            open_timeout=timeout,
            close_timeout=1,
        ).__enter__()  # closed by close()
    except InvalidStatus as error:
        raise InputError(f"{url}: {error.response.body.decode(errors='replace').strip()}") from error
    except (OSError, InvalidHandshake, InvalidURI) as error:
        raise InputError(f"no policy server at {url}: {error or type(error).__name__}") from error


class RemotePolicy:
    """Sends requests to a policy server. A thread owns the connection, so `predict` has a strict timeout.

    Args:
        url: Address of the server (ws://HOST:PORT).
        timeout: Timeout of an answer [s], after which `predict` returns None and the caller holds the robot still.
        connect_timeout: Timeout of a connection [s].
        embodiment: If set, the embodiment required of the server's policy. It must not change at a reconnection.
        statistics_hash: If set, the hash required of its normalization statistics. It must not change either.
        key_file: File with the API key; see `api_key`.

    Attributes:
        guides, fewer_cameras, data: From the server's metadata; see `GuidedPolicy`, `FewerCamerasPolicy` and
            `SummarizedPolicy`.

    Raises:
        InputError: if there is no `vla serve` at `url`, or if its metadata do not match; it names both values.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout: float = 1.0,
        connect_timeout: float = 10.0,
        embodiment: Embodiment | None = None,
        statistics_hash: str = "",
        key_file: str | None = None,
    ) -> None:
        self._url, self._timeout, self._connect_timeout = url, timeout, connect_timeout
        self._expected, self._hash = embodiment, statistics_hash
        self._history: tuple[float, ...] | None = None
        key = api_key(key_file)
        self._headers = {"Authorization": f"Api-Key {key}"} if key else None
        self._state = threading.Condition()
        self._requested, self._sent = 0, 0
        self._request = b""
        self._answer: tuple[int, dict[str, Any]] = (0, {})
        self._refusal: str | None = None
        self._closed = threading.Event()
        self._socket: ClientConnection | None = self._connect()
        self._thread = threading.Thread(target=self._run, name="remote policy", daemon=True)
        self._thread.start()

    @property
    def embodiment(self) -> Embodiment:
        """The robot."""
        assert self._expected is not None
        return self._expected

    def drive(self, body: Embodiment) -> None:
        """Uses the robot's limits and order of cameras instead of those of the server's data.

        Raises:
            InputError: if the server's policy has another embodiment.
        """
        self.embodiment.check(body, self.fewer_cameras)
        self._expected = body

    def reset(self) -> None:
        """Does nothing: there is no memory between chunks."""

    @property
    def history(self) -> tuple[float, ...]:
        """See `HistoryPolicy`; from the server's metadata."""
        return self._history or ()

    def predict(self, observation: Observation, *, prefix: RTCPrefix | None = None) -> ActionChunk | None:
        """See `Policy.predict`; also None without an answer in time.

        Raises:
            InputError: if the server rejects the observation, or now serves another policy.
        """
        extra: dict[str, Any] = {}
        if prefix is not None and len(prefix.committed):
            extra["vla/prefix"] = prefix.committed
        if prefix is not None and prefix.leftover is not None:
            extra |= {"vla/beyond": prefix.leftover, "vla/vjp": prefix.guidance_mode == "vjp"}
        return self._query(observation, extra)

    def predict_batch(
        self, observations: Sequence[Observation], *, prefix: RTCPrefix | None = None
    ) -> list[ActionChunk | None]:
        """`predict` for each observation in turn."""
        return [
            self.predict(observation, prefix=None if prefix is None else prefix.row(i))
            for i, observation in enumerate(observations)
        ]

    def _query(self, observation: Observation, extra: dict[str, Any]) -> ActionChunk | None:
        message: dict[str, Any] = {
            "images": dict(observation.images),
            "state": observation.state,
            "prompt": observation.instruction,
            "vla/time": observation.time,
        } | extra
        if observation.past:
            message["vla/past"] = [dict(images) for images in observation.past]
        with self._state:
            self._requested += 1
            request_id, self._request = self._requested, pack(message | {"vla/id": self._requested})
            self._state.notify_all()
            self._state.wait_for(lambda: self._refusal or self._answer[0] == request_id, self._timeout)
            if self._refusal:
                refusal, self._refusal = self._refusal, None
                raise InputError(f"{self._url}: {refusal}")
            if self._answer[0] != request_id or self._answer[1].get("actions") is None:
                return None
            answer = self._answer[1]
        return self._chunk(answer, observation)

    def close(self) -> None:
        """Ends the connection and its thread; a second call does nothing."""
        self._closed.set()
        with self._state:
            self._state.notify_all()
            socket = self._socket
        if socket is not None:
            socket.close()
        self._thread.join()

    def _chunk(self, answer: dict[str, Any], observation: Observation) -> ActionChunk | None:
        """The answer as a chunk; None for actions with a wrong shape or invalid values."""
        actions = answer["actions"]
        if not isinstance(actions, np.ndarray) or actions.ndim != 2 or actions.dtype.kind != "f":
            return None
        if actions.shape[1] != len(self.embodiment.action) or not np.isfinite(actions).all():
            return None
        return ActionChunk(np.array(actions), observation.time, 1 / self.embodiment.control_hz)

    def _connect(self) -> ClientConnection:
        """Opens a connection and checks the metadata. Raises InputError."""
        socket = _open(self._url, self._headers, self._connect_timeout)
        try:
            self._check(socket.recv(self._connect_timeout))
        except (InputError, TimeoutError, ConnectionClosed, TypeError, KeyError) as error:
            socket.close()
            raise _Mismatch(f"{self._url}: {error or type(error).__name__}") from error
        return socket

    def _check(self, message: str | bytes) -> None:
        metadata = unpack(message) if isinstance(message, bytes) else None
        if not isinstance(metadata, dict) or not isinstance(metadata.get("embodiment"), dict):
            raise InputError("the server does not name its embodiment: it is not `vla serve`")
        served = Embodiment.from_dict(metadata["embodiment"])
        self.fewer_cameras = bool(metadata.get("fewer_cameras", False))
        if self._expected is not None:
            if self.fewer_cameras and served.cameras_fit(self._expected, fewer=True):
                served.check(self._expected, fewer_cameras=True)
            else:
                self._expected.check(served)
        self.data = DataSummary.from_dict(metadata.get("data") or {})
        self.guides = "vla/beyond" in metadata.get("extras", ())
        history = tuple(map(float, metadata.get("history", ())))
        if self._history not in (None, history):
            raise InputError(f"the policy uses past frames at {history} s, not at {self._history} s")
        self._history = history
        statistics = str(metadata.get("statistics_hash", ""))
        if self._hash and statistics != self._hash:
            raise InputError(f"the policy is normalized by statistics {statistics or 'unknown'}, not by {self._hash}")
        self._expected, self._hash = self._expected or served, self._hash or statistics

    def _run(self) -> None:
        """Main function of the thread: sends the latest observation, waits for its answer, reconnects if necessary."""
        wait = BACKOFF[0]
        while not self._closed.is_set():
            try:
                if self._socket is None:
                    self._socket = self._connect()
                wait = BACKOFF[0]
                self._exchange(self._socket)
            except _Mismatch as error:
                self._refuse(str(error))
            except (InputError, ConnectionClosed, OSError):
                # Send an unanswered request again: the caller still waits for it.
                with self._state:
                    self._sent = min(self._sent, self._answer[0])
            if self._socket is not None:
                self._socket.close()
                self._socket = None
            self._closed.wait(wait)
            wait = min(2 * wait, BACKOFF[1])

    def _refuse(self, reason: str) -> None:
        with self._state:
            self._refusal = reason
            self._state.notify_all()

    def _exchange(self, socket: ClientConnection) -> None:
        """Exchanges requests and answers until the connection ends or the server sends an error."""
        while not self._closed.is_set():
            with self._state:
                self._state.wait_for(lambda: self._closed.is_set() or self._requested > self._sent)
                if self._closed.is_set():
                    return
                request_id = self._sent = self._requested
                request = self._request
            socket.send(request)
            while True:
                message = socket.recv()
                if isinstance(message, str):
                    return self._refuse(message)
                answer = unpack(message)
                if isinstance(answer, dict) and answer.get("vla/id") == request_id:
                    break
            with self._state:
                self._answer = (request_id, answer)
                self._state.notify_all()


class _Mismatch(InputError):
    """The server answers, but its metadata do not match."""
