"""The client of hosted models, against small servers of this test; test_hosted_serve.py has a real one."""

from __future__ import annotations

import base64
import io
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vla.errors import InputError
from vla.models.backbones import hosted
from vla.models.backbones.hosted import Hosted, HostedError, Price, backoff, is_snapshot

KEY = "sk-test-0123456789"
MODEL = "gpt-4o-2024-08-06"
RED = np.zeros((6, 8, 3), np.uint8) + np.array([200, 10, 20], np.uint8)

Reply = tuple[int, Any, dict[str, str]]


def completion(text: str | None = "red", model: str = MODEL, **fields: Any) -> Reply:
    choice = {"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 1000, "completion_tokens": 10}
    return 200, {"model": model, "choices": [choice], "usage": usage, **fields}, {}


class Server(ThreadingHTTPServer):
    """Gives the replies in order, the last one again and again; keeps what it was sent."""

    replies: list[Reply]
    seen: list[tuple[dict[str, str], dict[str, Any]]]
    busy = most_busy = 0
    gate: threading.Barrier | None = None

    def handle_error(self, *_: object) -> None:
        """A client that has hung up is part of the tests."""


class Handler(BaseHTTPRequestHandler):
    server: Server
    lock = threading.Lock()

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.lock:
            self.server.seen.append((dict(self.headers), {**body, "path": self.path}))
            status, reply, headers = (
                self.server.replies.pop(0) if len(self.server.replies) > 1 else self.server.replies[0]
            )
            self.server.busy += 1
            self.server.most_busy = max(self.server.busy, self.server.most_busy)
        if self.server.gate is not None:
            self.server.gate.wait(timeout=10)
        if status == 0:  # hangs up without a word
            with self.lock:
                self.server.busy -= 1
            self.close_connection = True
            return
        data = reply.encode() if isinstance(reply, str) else json.dumps(reply).encode()
        with self.lock:
            self.server.busy -= 1
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server(("127.0.0.1", 0), Handler)
    made.replies, made.seen = [completion()], []
    thread = threading.Thread(target=made.serve_forever, args=(0.01,))
    thread.start()
    yield made
    made.shutdown()
    made.server_close()
    thread.join()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What would have been slept, in seconds."""
    found: list[float] = []
    monkeypatch.setattr(hosted.time, "sleep", found.append)
    return found


@pytest.fixture
def client(server: Server, monkeypatch: pytest.MonkeyPatch, waits: list[float]) -> Callable[..., Hosted]:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)

    def make(model: str = MODEL, **arguments: Any) -> Hosted:
        return Hosted(model, f"http://127.0.0.1:{server.server_port}/v1/", **arguments)

    return make


def test_answers_come_in_order_with_tokens_cost_and_model(server: Server, client: Callable[..., Hosted]) -> None:
    server.replies = [completion(text) for text in "abcd"]
    model = client(price=Price(prompt=2.5, completion=10.0), concurrency=1)
    answers = model.answer(["1?", "2?", "3?", "4?"], role="planner")
    assert [a.text for a in answers] == ["a", "b", "c", "d"]
    assert [body["messages"][0]["content"][-2:] for _, body in server.seen] == ["1?", "2?", "3?", "4?"]
    assert {a.model for a in answers} == {MODEL} and model.usage.models == {MODEL: 4}
    assert (model.usage.prompt_tokens, model.usage.completion_tokens) == (4000, 40)
    assert model.cost == pytest.approx(4000 * 2.5e-6 + 40 * 10e-6)
    assert {body["path"] for _, body in server.seen} == {"/v1/chat/completions"}
    assert {headers["Authorization"] for headers, _ in server.seen} == {f"Bearer {KEY}"}


@pytest.mark.parametrize("image_format", ["png", "jpeg"])
def test_images_arrive_as_they_were(server: Server, client: Callable[..., Hosted], image_format: Any) -> None:
    client(image_format=image_format).answer(["what colour?"], [[RED, RED[:3]]])
    *pictures, text = server.seen[0][1]["messages"][0]["content"]
    assert text["text"].endswith("what colour?")
    heads, datas = zip(*(p["image_url"]["url"].split(",") for p in pictures), strict=True)
    assert set(heads) == {f"data:image/{image_format};base64"}
    decoded = [np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))).astype(int) for data in datas]
    slack = 0 if image_format == "png" else 6
    for found, sent in zip(decoded, (RED, RED[:3]), strict=True):
        assert found.shape == sent.shape and np.abs(found - sent).max() <= slack


def test_no_more_requests_under_way_than_allowed(server: Server, client: Callable[..., Hosted]) -> None:
    server.gate = threading.Barrier(3)  # each waits until three are there
    client(concurrency=3).answer(["?"] * 9)
    assert server.most_busy == 3 and len(server.seen) == 9


FAILURES: dict[str, Reply] = {
    "overloaded": (503, "busy", {}),
    "limit": (429, {"error": {"code": "rate_limit_exceeded"}}, {}),
    "hangs up": (0, "", {}),
    "no json": (200, "<html>", {}),
    "no choices": (200, {"model": MODEL, "choices": []}, {}),
    "no model": (200, {"choices": completion()[1]["choices"]}, {}),
    "no text": completion(None),
    "not an object": (200, [1, 2], {}),
    "tokens as text": completion(usage={"prompt_tokens": "many", "completion_tokens": 1}),
}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_passing_failure_is_tried_again(
    failure: str, server: Server, client: Callable[..., Hosted], waits: list[float]
) -> None:
    server.replies = [FAILURES[failure]] * 2 + [completion()]
    model = client()
    assert model.answer(["?"])[0].text == "red"
    assert (model.usage.requests, model.usage.retries) == (3, 2)
    assert 0.25 <= waits[0] <= 0.5 <= waits[1] <= 1 and len(waits) == 2


@pytest.mark.parametrize("failure", FAILURES)
def test_a_lasting_failure_says_what_it_was(failure: str, server: Server, client: Callable[..., Hosted]) -> None:
    server.replies = [FAILURES[failure]]
    with pytest.raises(HostedError, match=rf"chat/completions did not answer for {MODEL}: \w+") as raised:
        client(attempts=3).answer(["?"])
    assert len(server.seen) == 3 and KEY not in str(raised.value)


def test_nobody_listens(client: Callable[..., Hosted], server: Server) -> None:
    model = client(attempts=2)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        model._url = f"http://127.0.0.1:{unused.getsockname()[1]}/v1/chat/completions"
        with pytest.raises(HostedError, match="ConnectError"):
            model.answer(["?"])


def test_a_slow_server_times_out(server: Server, client: Callable[..., Hosted]) -> None:
    server.gate = threading.Barrier(2)  # nobody comes
    with pytest.raises(HostedError, match="ReadTimeout"):
        client(attempts=1, timeout=0.1).answer(["?"])
    server.gate.abort()


def test_retry_after_is_honoured(server: Server, client: Callable[..., Hosted], waits: list[float]) -> None:
    later = formatdate(time.time() + 40, usegmt=True)
    server.replies = [(429, "", {"Retry-After": "7"}), (503, "", {"Retry-After": later}), completion()]
    client().answer(["?"])
    assert waits[0] == 7 and 35 < waits[1] <= 40


def test_a_wait_of_an_hour_is_not_waited_for(server: Server, client: Callable[..., Hosted], waits: list[float]) -> None:
    server.replies = [(429, "", {"Retry-After": "3600"})]
    with pytest.raises(HostedError, match="asks to wait 3600 s"):
        client().answer(["?"])
    assert waits == [] and len(server.seen) == 1


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        ((401, {"error": {"message": f"Incorrect API key provided: {KEY}"}}, {}), "refuses the key in OPENAI_API_KEY"),
        ((403, "", {}), "HTTP 403"),
        ((404, {"error": {"message": "The model does not exist"}}, {}), f"no model {MODEL}.*does not exist"),
        ((400, {"error": {"message": f"bad image, {KEY}"}}, {}), "HTTP 400.*bad image, <OPENAI_API_KEY>"),
        ((429, {"error": {"code": "insufficient_quota"}}, {}), "no quota left"),
        ((307, "", {"Location": "http://127.0.0.1:9/"}), "HTTP 307"),
    ],
)
def test_what_asking_again_does_not_mend_ends_at_once(
    reply: Reply, message: str, server: Server, client: Callable[..., Hosted], waits: list[float]
) -> None:
    server.replies = [reply]
    with pytest.raises(InputError, match=message) as raised:
        client().answer(["?"])
    assert len(server.seen) == 1 and waits == [] and KEY not in str(raised.value)


def test_the_key_is_in_no_log_and_in_no_attribute(
    server: Server, client: Callable[..., Hosted], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        model = client()
        model.answer(["?"], [[RED]])
    assert caplog.text and KEY not in caplog.text
    assert KEY not in repr(vars(model))


@pytest.mark.parametrize(("key", "message"), [("", "set OPENAI_API_KEY"), ("sk-a\nb", "characters that no key has")])
def test_a_missing_or_broken_key_ends_before_anything_is_sent(
    key: str, message: str, server: Server, client: Callable[..., Hosted], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(InputError, match=message) as raised:
        client().answer(["?"])
    assert server.seen == [] and "sk-a" not in str(raised.value)


def test_a_server_without_keys_gets_none(server: Server, client: Callable[..., Hosted]) -> None:
    client(key_env=None).answer(["?"])
    assert "Authorization" not in server.seen[0][0]


def test_another_model_under_an_older_name_is_refused(server: Server, client: Callable[..., Hosted]) -> None:
    server.replies = [completion(model="gpt-5-2025-08-07")]
    model = client("gpt-4-vision-preview", price=Price(1, 1))
    with pytest.raises(InputError, match="requested gpt-4-vision-preview, but gpt-5-2025-08-07 answered"):
        model.answer(["?"])
    assert model.usage.models == {"gpt-5-2025-08-07": 1} and model.cost == pytest.approx(1010e-6)


@pytest.mark.parametrize(
    ("asked", "served", "same"),
    [
        ("gpt-4o", "gpt-4o-2024-08-06", True),
        ("gpt-4", "gpt-4-0613", True),
        ("gpt-4", "gpt-4o-2024-08-06", False),
        ("gpt-4", "gpt-4.1", False),
        ("gpt-4", "gpt-4-turbo-2024-04-09", False),
        ("gpt-4o-2024-05-13", "gpt-4o-2024-08-06", False),
        ("claude-3-opus-latest", "claude-3-opus-20240229", True),
        ("claude-sonnet-4", "claude-sonnet-4-5-20250929", False),
        ("gemini-1.5-pro", "models/gemini-1.5-pro-002", True),
        ("gemini-1.5-pro", "gemini-2.5-pro", False),
        ("tiny/llava", "tiny/llava@main", True),
        ("llava", "llava:latest", True),
    ],
)
def test_a_dated_release_is_the_model_and_another_is_not(asked: str, served: str, same: bool) -> None:
    assert is_snapshot(asked, served) is same


@given(st.text(min_size=1).filter(lambda name: not name.startswith("models/")))
def test_a_model_is_a_snapshot_of_itself(name: str) -> None:
    assert is_snapshot(name, name) and is_snapshot(name, f"models/{name}")


@given(st.integers(0, 200))
def test_waits_grow_to_a_minute_and_vary(attempt: int) -> None:
    longest = min(60.0, 0.5 * 2**attempt)
    assert longest / 2 <= backoff(attempt) <= longest


def test_cost_is_unknown_without_a_price_or_tokens(server: Server, client: Callable[..., Hosted]) -> None:
    model = client()
    model.answer(["?"])
    assert model.cost is None
    server.replies = [completion(usage=None)]
    model = client(price=Price(1, 1))
    assert model.answer(["?"])[0].prompt_tokens is None
    assert model.cost is None and model.usage.unreported == 1


def test_a_refusal_is_an_answer(server: Server, client: Callable[..., Hosted]) -> None:
    refusal = {"message": {"content": None, "refusal": "I cannot say"}, "finish_reason": "stop"}
    filtered = {"message": {"content": None}, "finish_reason": "content_filter"}
    server.replies = [completion(choices=[refusal]), completion(choices=[filtered])]
    answers = client(concurrency=1).answer(["?", "?"])
    assert [(a.text, a.finish) for a in answers] == [("I cannot say", "stop"), ("", "content_filter")]


@pytest.mark.parametrize(
    "url",
    ["api.example.org/v1", "ftp://example.org", "https://me:secret@example.org/v1", "https://x.org/v1?key=secret"],
)
def test_an_address_that_is_none_or_holds_a_secret(url: str) -> None:
    with pytest.raises(InputError, match="base_url") as raised:
        Hosted(MODEL, url)
    assert "secret" not in str(raised.value)


def test_questions_and_images_must_agree(client: Callable[..., Hosted], server: Server) -> None:
    with pytest.raises(InputError, match="2 questions, but images for 1"):
        client().answer(["?", "?"], [[RED]])
    with pytest.raises(InputError, match="no role 'poet'"):
        client().answer(["?"], role="poet")
    assert client().answer([]) == [] and server.seen == []
