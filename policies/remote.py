"""A policy on another machine, over openpi's protocol as `vla serve` speaks it."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI
from websockets.sync.client import ClientConnection, connect

from vla.common.msgpack_numpy import pack, unpack
from vla.embodiment import Embodiment
from vla.errors import InputError
from vla.policies.data_summary import DataSummary
from vla.types import ActionChunk, Observation

KEY_VARIABLE = "VLA_API_KEY"
BACKOFF = (0.1, 5.0)
"""[s] before the first try to connect again, doubled at each until the second."""


def api_key(key_file: str | None = None) -> str:
    """The key in `key_file`, else in the environment variable VLA_API_KEY; empty for none. Raises InputError."""
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
    """What a server says of its policy when a client connects. Raises InputError where there is no server of ours."""
    key = api_key(key_file)
    socket = _open(url, {"Authorization": f"Api-Key {key}"} if key else None, timeout)
    try:
        metadata = unpack(message) if isinstance(message := socket.recv(timeout), bytes) else None
    except (TimeoutError, ConnectionClosed, TypeError, InputError) as error:
        raise InputError(f"{url}: {error or type(error).__name__}") from error
    finally:
        socket.close()
    if not isinstance(metadata, dict):
        raise InputError(f"{url}: the server says nothing of its policy: it is not `vla serve`")
    return metadata


def _open(url: str, headers: dict[str, str] | None, timeout: float) -> ClientConnection:
    """A connection. Raises InputError."""
    try:
        return connect(
            url,
            additional_headers=headers,
            compression=None,
            max_size=2**26,
            proxy=None,
            open_timeout=timeout,
            close_timeout=1,
        ).__enter__()  # left by close(): it outlives this block
    except InvalidStatus as error:
        raise InputError(f"{url}: {error.response.body.decode(errors='replace').strip()}") from error
    except (OSError, InvalidHandshake, InvalidURI) as error:
        raise InputError(f"no policy server at {url}: {error or type(error).__name__}") from error


class RemotePolicy:
    """Asks the server at `url` (ws://HOST:PORT). A thread owns the connection, so `predict` never waits for it longer
    than `timeout` [s]: without an answer by then it is None, and the caller holds the robot still.

    The server's metadata must name `embodiment` and `statistics_hash` where they are given, and the same ones after
    each reconnection. Raises InputError, naming both, where it does not, or where there is no server of ours.
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
        self._asked, self._sent = 0, 0
        self._question = b""
        self._answer: tuple[int, dict[str, Any]] = (0, {})
        self._refusal: str | None = None
        self._closed = threading.Event()
        self._socket: ClientConnection | None = self._connect()
        self._thread = threading.Thread(target=self._run, name="remote policy", daemon=True)
        self._thread.start()

    @property
    def embodiment(self) -> Embodiment:
        assert self._expected is not None
        return self._expected

    def drive(self, body: Embodiment) -> None:
        """Takes the robot's own limits and order of cameras for those of the server's data.

        Raises InputError where the server's policy is of another embodiment.
        """
        self.embodiment.check(body, self.fewer_cameras)
        self._expected = body

    def reset(self) -> None:
        """Nothing is remembered between chunks, there or here."""

    @property
    def guides(self) -> bool:
        """Whether the server's policy can be guided."""
        return self._guides

    @property
    def fewer_cameras(self) -> bool:
        """See `FewerCamerasPolicy`: as the server says."""
        return self._fewer_cameras

    @property
    def data(self) -> DataSummary:
        """See `SummarizedPolicy`: as the server says."""
        return self._data

    @property
    def history(self) -> tuple[float, ...]:
        """See `HistoryPolicy`: as the server says."""
        return self._history or ()

    def predict(
        self, observation: Observation, *, prefix: Float[np.ndarray, "k a"] | None = None
    ) -> ActionChunk | None:
        """See `Policy.predict`; None also where no answer came in time. Raises InputError where the server says that
        the observation is wrong, or where another policy is served since."""
        return self._ask(observation, {} if prefix is None else {"vla/prefix": prefix})

    def predict_batch(
        self,
        observations: Sequence[Observation],
        *,
        prefix: Float[np.ndarray, "b k a"] | None = None,
        previous_chunk_leftover: Float[np.ndarray, "b m a"] | None = None,
        vjp: bool = False,
    ) -> list[ActionChunk | None]:
        """`predict` for one after the other; `previous_chunk_leftover` and `vjp` as in `GuidedPolicy`."""
        more = {"vla/vjp": vjp} if previous_chunk_leftover is not None else {}
        rows = {
            key: part
            for key, part in (("vla/prefix", prefix), ("vla/beyond", previous_chunk_leftover))
            if part is not None
        }
        given = [{key: part[i] for key, part in rows.items()} | more for i in range(len(observations))]
        return [self._ask(seen, some) for seen, some in zip(observations, given, strict=True)]

    def _ask(self, observation: Observation, given: dict[str, Any]) -> ActionChunk | None:
        message: dict[str, Any] = {
            "images": dict(observation.images),
            "state": observation.state,
            "prompt": observation.instruction,
            "vla/time": observation.time,
        } | given
        if observation.past:
            message["vla/past"] = [dict(images) for images in observation.past]
        with self._state:
            self._asked += 1
            asked, self._question = self._asked, pack(message | {"vla/id": self._asked})
            self._state.notify_all()
            self._state.wait_for(lambda: self._refusal or self._answer[0] == asked, self._timeout)
            if self._refusal:
                refusal, self._refusal = self._refusal, None
                raise InputError(f"{self._url}: {refusal}")
            if self._answer[0] != asked or self._answer[1].get("actions") is None:
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
        """The answer as a chunk; None for actions that are not those of the robot."""
        actions = answer["actions"]
        if not isinstance(actions, np.ndarray) or actions.ndim != 2 or actions.dtype.kind != "f":
            return None
        if actions.shape[1] != len(self.embodiment.action) or not np.isfinite(actions).all():
            return None
        return ActionChunk(np.array(actions), observation.time, 1 / self.embodiment.control_hz)

    def _connect(self) -> ClientConnection:
        """A connection whose metadata fit. Raises InputError."""
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
        there = Embodiment.from_dict(metadata["embodiment"])
        self._fewer_cameras = bool(metadata.get("fewer_cameras", False))
        if self._expected is not None:
            if self._fewer_cameras and there.cameras_fit(self._expected, fewer=True):
                there.check(self._expected, fewer_cameras=True)
            else:
                self._expected.check(there)
        self._data = DataSummary.from_dict(metadata.get("data") or {})
        self._guides = "vla/beyond" in metadata.get("extras", ())
        history = tuple(map(float, metadata.get("history", ())))
        if self._history not in (None, history):
            raise InputError(f"shown frames of {history} s before the present, not of {self._history} s")
        self._history = history
        statistics = str(metadata.get("statistics_hash", ""))
        if self._hash and statistics != self._hash:
            raise InputError(f"normalised by statistics {statistics or 'unknown'}, not by {self._hash}")
        self._expected, self._hash = self._expected or there, self._hash or statistics

    def _run(self) -> None:
        """The thread: sends the latest observation, waits for its answer, and connects again when the line breaks."""
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
                # What was not answered is asked again: the caller still waits for it.
                with self._state:
                    self._sent = min(self._sent, self._answer[0])
            if self._socket is not None:
                self._socket.close()
                self._socket = None
            self._closed.wait(wait)
            wait = min(2 * wait, BACKOFF[1])

    def _refuse(self, why: str) -> None:
        with self._state:
            self._refusal = why
            self._state.notify_all()

    def _exchange(self, socket: ClientConnection) -> None:
        """Questions and answers until the connection ends or an answer is no answer."""
        while not self._closed.is_set():
            with self._state:
                self._state.wait_for(lambda: self._closed.is_set() or self._asked > self._sent)
                if self._closed.is_set():
                    return
                asked = self._sent = self._asked
                question = self._question
            socket.send(question)
            while True:
                message = socket.recv()
                if isinstance(message, str):
                    return self._refuse(message)
                answer = unpack(message)
                if isinstance(answer, dict) and answer.get("vla/id") == asked:
                    break
            with self._state:
                self._answer = (asked, answer)
                self._state.notify_all()


class _Mismatch(InputError):
    """The server answers, but it is not the one that this policy was made for."""
