"""The server: openpi's protocol, one robot's chunks never another's, and errors that reach their sender alone."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from serving import ROBOT, Mark, PlainClient, message, served
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from vla.embodiment import Embodiment
from vla.errors import InputError
from vla.serving.observation import Keys, read_request
from vla.serving.server import PolicyServer, check_host

OPENPI = """
import sys
import numpy as np
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from openpi_client.action_chunk_broker import ActionChunkBroker
url, key = sys.argv[1:]
client = WebsocketClientPolicy(url, api_key=key)
image = np.full((4, 6, 3), 5, np.uint8)
seen = {"images": {"top": image}, "state": np.array([3.5, 2.0]), "prompt": "go"}
print(client.get_server_metadata()["embodiment"]["name"])
print(client.infer(seen)["actions"].tolist())
broker = ActionChunkBroker(client, action_horizon=2)
print([broker.infer(seen)["actions"].tolist() for _ in range(3)])
try:
    client.infer({"prompt": np.str_("go")})
except RuntimeError as error:
    print(error)
"""


def test_the_real_client_works_unchanged() -> None:
    python = os.environ.get("OPENPI_PYTHON")
    if not python or not Path(python).exists():
        pytest.skip("OPENPI_PYTHON names no interpreter of an environment with openpi-client")
    with served(Mark(), key="secret") as url:
        run = subprocess.run([python, "-c", OPENPI, url, "secret"], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    name, actions, broker, *error = run.stdout.splitlines()
    assert (name, actions) == ("arm", "[[3.5, 2.0], [5.0, 2.0]]")
    assert broker == "[[3.5, 2.0], [5.0, 2.0], [3.5, 2.0]]"
    assert "images/top: missing" in "\n".join(error)


def test_a_client_of_the_protocol_alone() -> None:
    with served(Mark(), statistics_hash="abc") as url, PlainClient(url) as robot:
        assert robot.metadata["statistics_hash"] == "abc"
        assert Embodiment.from_dict(robot.metadata["embodiment"]) == ROBOT
        assert {"vla/prefix", "vla/time", "vla/id"} == set(robot.metadata["extras"])
        first, second = robot.infer(message(3)), robot.infer(message(4))
        np.testing.assert_array_equal(first["actions"], [[3, 2], [3, 2]])
        np.testing.assert_array_equal(second["actions"], [[4, 2], [4, 2]])
        assert "prev_total_ms" not in first["server_timing"] and second["server_timing"]["prev_total_ms"] > 0
        assert not any(isinstance(v, np.ndarray) for k, v in first.items() if k != "actions")


def test_extras_come_back() -> None:
    prefix = np.array([[0.5, 0.25]])
    with served(Mark()) as url, PlainClient(url) as robot:
        answer = robot.infer(message(3) | {"vla/id": "n1", "vla/time": 7.5, "vla/prefix": prefix})
        assert (answer["vla/id"], answer["vla/start"], answer["vla/dt"]) == ("n1", 7.5, 0.1)
        np.testing.assert_array_equal(answer["actions"][:1], prefix)
        assert robot.infer(message(3, prompt="none") | {"vla/id": 2})["actions"] is None
        with pytest.raises(RuntimeError, match="hold the robot still"):
            robot.infer(message(3, prompt="none"))


@pytest.fixture
def busy() -> Iterator[tuple[Mark, PlainClient, PlainClient]]:
    """A policy whose gate is closed, and two clients of its server; the first waits for the answer to `message(1)`."""
    policy = Mark()
    policy.gate.clear()
    with served(policy) as url, PlainClient(url) as first, PlainClient(url) as second:
        first.send(message(1))
        assert policy.entered.acquire(timeout=30)
        yield policy, first, second


def test_the_latest_observation_wins(busy: tuple[Mark, PlainClient, PlainClient]) -> None:
    policy, robot, other = busy
    for number in (2, 3, 4):
        robot.send(message(number))
    robot.socket.ping().wait(30)  # the answer says that what was sent before has been read
    policy.gate.set()
    assert [robot.receive()["actions"][0, 0] for _ in range(2)] == [1, 4]
    assert other.infer(message(9))["actions"][0, 0] == 9
    assert policy.seen == [1, 4, 9]


def test_a_flood_takes_no_turn_of_others(busy: tuple[Mark, PlainClient, PlainClient]) -> None:
    policy, flood, robot = busy
    robot.send(message(7))
    robot.socket.ping().wait(30)
    for _ in range(300):
        flood.send(message(2))
    policy.gate.set()
    assert robot.receive()["actions"][0, 0] == 7
    assert policy.seen[:2] == [1, 7]


def test_several_robots_do_not_mix() -> None:
    def drive(first: int) -> bool:
        with PlainClient(url) as robot:
            numbers = range(first, first + 20)
            return all((robot.infer(message(n))["actions"] == [[n, 2], [n % 256, 2]]).all() for n in numbers)

    with served(Mark()) as url, ThreadPoolExecutor(6) as pool:
        assert all(pool.map(drive, range(0, 600, 100)))


def test_keys_hosts_origins_and_places() -> None:
    with served(Mark(), key="secret", max_clients=1) as url:
        for key in ("", "wrong", "secre", "sécret"):
            with pytest.raises(InvalidStatus, match="401"):
                PlainClient(url, key.encode().decode("latin-1"))
        with pytest.raises(InvalidStatus, match="403"):
            connect(
                url, origin="http://evil.example", additional_headers={"Authorization": "Api-Key secret"}, proxy=None
            )  # type: ignore[arg-type]
        with PlainClient(url, "secret"), pytest.raises(InvalidStatus, match="503"):
            PlainClient(url, "secret")
    check_host("127.0.0.1", ""), check_host("::1", ""), check_host("0.0.0.0", "key")
    for host in ("0.0.0.0", "::", "192.168.1.5", "", "arm.local"):
        with pytest.raises(InputError, match="key"):
            check_host(host, "")


def test_health_and_metrics() -> None:
    with served(Mark(), key="secret") as url, httpx.Client(base_url=url.replace("ws", "http"), trust_env=False) as http:
        assert http.get("/healthz").text == "OK\n"
        assert http.get("/metrics").status_code == 401
        with PlainClient(url, "secret") as robot:
            robot.infer(message())
            text = http.get("/metrics", headers={"Authorization": "Api-Key secret"}).text
    rows = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert rows["vla_serve_clients"] == rows['vla_serve_answers_total{outcome="chunk"}'] == "1"
    assert rows["vla_serve_refused_total"] == "1"


def test_what_waits_is_answered_before_the_end() -> None:
    policy = Mark()
    policy.gate.clear()

    def open_once_draining() -> int:
        with httpx.Client(base_url=url.replace("ws", "http"), trust_env=False) as http:
            while (status := http.get("/healthz").status_code) == 200:
                pass
        policy.gate.set()
        return status

    with ThreadPoolExecutor(1) as pool, served(policy) as url:
        robot = PlainClient(url)
        robot.send(message(5))
        assert policy.entered.acquire(timeout=30)
        opened = pool.submit(open_once_draining)
    assert opened.result() == 503
    assert robot.receive()["actions"][0, 0] == 5
    with pytest.raises(ConnectionClosed, match="1001"):
        robot.receive()


def test_a_policy_that_remembers_is_refused() -> None:
    class Remembers:
        embodiment = ROBOT
        reset = predict = Mark.predict

    with pytest.raises(InputError, match="has memory between chunks"):
        PolicyServer(Remembers(), Keys.of(ROBOT, {}, ()))


ALOHA = Embodiment("two", ("high", "left"), tuple("abc"), ("a",), (0.0,), (1.0,), 50.0)


@pytest.mark.parametrize("nested", [True, False])
def test_the_keys_of_other_robots(nested: bool) -> None:
    keys = Keys.of(ALOHA, {"high": "images/cam_high", "left": "observation/left"}, ("joints", "grip"))
    image = np.arange(24, dtype=np.uint8).reshape(3, 2, 4)
    seen: dict[str, Any] = {"observation/left": image.transpose(1, 2, 0), "joints": np.ones(2, ">f4"), "grip": 2}
    seen |= {"prompt": np.str_("go")} | ({"images": {"cam_high": image}} if nested else {"images/cam_high": image})
    observation = read_request(seen, keys, ALOHA, lambda: 3.0)[0].observation
    assert observation.instruction == "go" and observation.time == 3.0
    assert observation.state.tolist() == [1, 1, 2]
    np.testing.assert_array_equal(observation.images["high"], observation.images["left"])
    with pytest.raises(InputError, match=r"cameras\.wrist"):
        Keys.of(ALOHA, {"wrist": "w"}, ())
