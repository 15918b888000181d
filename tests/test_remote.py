"""The client as a policy: the same bits as at home, None rather than waiting, and no other robot's server."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from serving import ROBOT, Mark, served
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import ServerConnection, serve

from vla.common.msgpack_numpy import pack, unpack
from vla.control.adapt import adapt
from vla.errors import InputError
from vla.policies.load import load_policy
from vla.policies.remote import RemotePolicy, api_key
from vla.serving.observation import Keys
from vla.serving.server import PolicyServer
from vla.types import ActionChunk, Observation, RTCPrefix


def seen(number: int = 1, instruction: str = "go") -> Observation:
    return Observation({"top": np.full((4, 6, 3), number, np.uint8)}, np.array([number, 2.0]), instruction, number / 10)


@contextmanager
def remote(url: str, **options: Any) -> Iterator[RemotePolicy]:
    policy = RemotePolicy(url, **({"timeout": 30.0} | options))
    try:
        yield policy
    finally:
        policy.close()


def test_served_chunks_are_the_local_ones_to_the_bit(
    make_model: Callable[..., Any], make_episode: Callable[..., Any]
) -> None:
    from vla.policies.vla import VlaPolicy

    local = VlaPolicy(make_model())
    episode = make_episode(steps=4)
    with served(local) as url, remote(url, embodiment=local.embodiment) as policy:
        for t in range(4):
            images = {name: frames[t] for name, frames in episode.images.items()}
            observation = Observation(images, episode.state[t], episode.instruction, float(episode.time[t]))
            for prefix in (None, RTCPrefix(episode.action[:2])):
                here, there = (p.predict(observation, prefix=prefix) for p in (local, policy))
                assert here is not None and there is not None
                assert (here.actions.dtype, here.actions.tobytes()) == (there.actions.dtype, there.actions.tobytes())
                assert (here.start, here.dt) == (there.start, there.dt)


def test_a_flow_elsewhere_is_guided() -> None:
    class Guided(Mark):
        guides = True

        def predict_batch(self, observations: Any, *, prefix: Any = None) -> list[ActionChunk | None]:
            scale = 10 if prefix.guidance_mode == "vjp" else 100
            return [ActionChunk(np.concatenate([*prefix.committed, scale * prefix.leftover[0]]), 0.0, 0.1)]

    prefix = RTCPrefix(np.ones((1, 2)), np.full((2, 2), 2.0))
    with served(Guided()) as url, remote(url) as policy:
        for mode, value in (("vjp", 20.0), ("identity", 200.0)):
            chunk = policy.predict(seen(), prefix=replace(prefix, guidance_mode=mode))
            assert policy.guides and chunk is not None
            assert chunk.actions.tolist() == [[1.0, 1.0], [value, value], [value, value]]
        with pytest.raises(InputError, match="vla/beyond comes with vla/prefix"):
            policy.predict(seen(), prefix=replace(prefix, committed=np.ones((0, 2))))
    with served(Mark()) as url, remote(url) as policy:
        with pytest.raises(InputError, match="needs a flow head"):
            policy.predict_batch([seen()], prefix=RTCPrefix.stack([prefix]))
        assert not policy.guides


def test_another_embodiment_and_other_statistics_are_refused_naming_both() -> None:
    with served(Mark(), statistics_hash="aaa") as url:
        with pytest.raises(InputError, match="embodiment mine does not match arm: control_hz: 20.0, of the other 10.0"):
            RemotePolicy(url, embodiment=replace(ROBOT, name="mine", control_hz=20.0))
        with pytest.raises(InputError, match="statistics aaa, not by bbb"):
            RemotePolicy(url, statistics_hash="bbb")
        with remote(url, embodiment=ROBOT, statistics_hash="aaa") as policy:
            assert policy.embodiment == ROBOT
            # A robot of that kind keeps its own limits.
            body = replace(ROBOT, name="mine", action_low=(-0.1, -0.1), action_high=(0.1, 0.1))
            assert adapt(policy, body, None, {}) is policy and policy.embodiment == body
            with pytest.raises(InputError, match="control_hz"):
                adapt(policy, replace(body, control_hz=20.0), None, {})


def test_no_answer_in_time_is_none_and_a_late_one_is_not_taken_for_the_next() -> None:
    served_policy = Mark()
    served_policy.gate.clear()
    with served(served_policy) as url, remote(url, timeout=0.05) as policy:
        assert policy.predict(seen(1)) is None
        policy._timeout = 30.0
        assert served_policy.entered.acquire(timeout=30)
        served_policy.gate.set()
        chunk = policy.predict(seen(2))
        assert chunk is not None and chunk.actions[0, 0] == 2 and chunk.start == 0.2


def test_what_the_policy_cannot_say_is_none_and_what_it_cannot_read_an_error() -> None:
    with served(Mark()) as url, remote(url) as policy:
        assert policy.predict(seen(instruction="none")) is None
        with pytest.raises(InputError, match="images/top: missing"):
            policy.predict(replace(seen(), images={}))
        assert answer(policy) is not None


def answer(policy: RemotePolicy) -> ActionChunk | None:
    """The first answer once the line stands again: each None has waited for the timeout."""
    return next((chunk for _ in range(300) if (chunk := policy.predict(seen()))), None)


def test_it_holds_while_the_server_is_gone_and_comes_back() -> None:
    with served(Mark(), statistics_hash="aaa") as url:
        port = int(url.rsplit(":", 1)[1])
        policy = RemotePolicy(url, timeout=30.0)
        assert policy.predict(seen()) is not None
    try:
        policy._timeout = 0.1
        assert policy.predict(seen()) is None
        with served(Mark(), port=port, statistics_hash="aaa"):
            assert answer(policy) is not None
        with served(Mark(), port=port, statistics_hash="bbb"), pytest.raises(InputError, match="bbb, not by aaa"):
            answer(policy)
    finally:
        policy.close()


def test_a_question_is_asked_again_where_the_line_was_cut_before_its_answer() -> None:
    metadata = PolicyServer(Mark(), Keys.of(ROBOT, {}, ())).metadata
    questions: list[int] = []

    def answer_the_second(line: ServerConnection) -> None:
        line.send(pack(metadata))
        with suppress(ConnectionClosed):
            for message in line:
                asked = unpack(message)
                questions.append(asked["vla/id"])
                if len(questions) == 1:
                    line.socket.close()  # as a cable that is pulled
                    return
                line.send(pack({"actions": np.full((2, 2), 3.0), "vla/id": asked["vla/id"]}))

    with serve(answer_the_second, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        policy = RemotePolicy(f"ws://127.0.0.1:{server.socket.getsockname()[1]}", timeout=30.0)
        try:
            chunk = policy.predict(seen())
            assert chunk is not None and (chunk.actions == 3).all() and questions == [1, 1]
        finally:
            policy.close()
            server.shutdown()
            thread.join()


def test_no_server_and_a_wrong_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with served(Mark(), key="secret") as url:
        with pytest.raises(InputError, match="wrong or missing key"):
            RemotePolicy(url)
        (tmp_path / "key").write_text("secret\n")
        with remote(url, key_file=str(tmp_path / "key")) as policy:
            assert policy.predict(seen()) is not None
        monkeypatch.setenv("VLA_API_KEY", "secret")
        remote(url).__enter__().close()
    for wrong in (url, "ws://", "http://127.0.0.1"):
        with pytest.raises(InputError, match="no policy server"):
            RemotePolicy(wrong)
    (tmp_path / "key").write_text("")
    for name in ("key", "none"):
        with pytest.raises(InputError, match="key_file"):
            api_key(str(tmp_path / name))


def test_a_url_is_the_name_of_a_policy() -> None:
    env: Any = SimpleNamespace(unwrapped=SimpleNamespace(embodiment=ROBOT))
    with served(Mark()) as url:
        policy = load_policy(url)(env)
        assert isinstance(policy, RemotePolicy)
        with suppress(InputError):
            assert policy.predict(seen()) is not None
        policy.close()
