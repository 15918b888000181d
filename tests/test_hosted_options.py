"""Servers that refuse a parameter of a request are asked again without it, or under its other name."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from test_hosted import MODEL, Reply, Server, client, completion, server, waits

from vla.commands import cli
from vla.errors import InputError
from vla.models.backbones.hosted import HEADROOM, Hosted

__all__ = ["client", "server", "waits"]


def unsupported(name: str, message: str = "", status: int = 400) -> Reply:
    """As OpenAI's servers say it."""
    message = message or f"Unsupported parameter: '{name}' is not supported with this model."
    error = {"message": message, "type": "invalid_request_error", "param": name, "code": "unsupported_parameter"}
    return status, {"error": error}, {}


MAX_TOKENS = unsupported(
    "max_tokens",
    "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
)
TEMPERATURE = unsupported(
    "temperature",
    "Unsupported value: 'temperature' does not support 0 with this model. Only the default (1) value is supported.",
)


def options(server: Server) -> list[dict[str, Any]]:
    """What each request had beside the model, the messages and the path."""
    return [{k: v for k, v in body.items() if k not in ("model", "messages", "path")} for _, body in server.seen]


def test_a_model_that_reasons_is_asked_as_it_wants_and_that_is_remembered(
    server: Server, client: Callable[..., Hosted], waits: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    server.replies = [MAX_TOKENS, TEMPERATURE, completion("red"), completion("blue")]
    model = client(concurrency=1, max_tokens=32)
    assert [a.text for a in model.answer(["a?", "b?"])] == ["red", "blue"]
    assert options(server) == [
        {"max_tokens": 32, "temperature": 0},
        {"max_completion_tokens": 32, "temperature": 0},
        {"max_completion_tokens": 32},
        {"max_completion_tokens": 32},
    ]
    assert waits == [] and (model.usage.requests, model.usage.retries) == (4, 0)
    said = capsys.readouterr().err
    assert "takes no max_tokens: it is sent max_completion_tokens" in said
    assert "takes no temperature, so its answers may differ from run to run" in said and said.count("\n") == 2


def bad(status: int = 400, **error: Any) -> Reply:
    return status, {"error": error}, {}


VLLM = "[{'type': 'extra_forbidden', 'loc': ('body', 'temperature'), 'msg': 'Extra inputs are not permitted'}]"
FASTAPI = {"detail": [{"type": "extra_forbidden", "loc": ["body", "max_tokens"], "msg": "Extra inputs"}]}
REFUSALS: list[tuple[Reply, str]] = [
    (MAX_TOKENS, "max_tokens"),
    (unsupported("max_tokens", status=422), "max_tokens"),
    (TEMPERATURE, "temperature"),
    (bad(message="Unsupported parameter: 'temperature'", code="invalid_request_body"), "temperature"),
    (bad(message="invalid temperature: only 1 is allowed for this model"), "temperature"),
    ((400, {"error": "Unrecognized request argument supplied: temperature"}, {}), "temperature"),
    ((400, {"object": "error", "param": None, "code": 400, "message": VLLM}, {}), "temperature"),
    ((422, FASTAPI, {}), "max_tokens"),
    ((400, "temperature is not supported", {}), "temperature"),
]


@pytest.mark.parametrize(("reply", "name"), REFUSALS)
def test_what_is_refused_is_understood_however_it_is_said(
    reply: Reply, name: str, server: Server, client: Callable[..., Hosted]
) -> None:
    server.replies = [reply, completion("red")]
    assert client().answer(["a?"])[0].text == "red"
    first, second = options(server)
    assert name in first and name not in second


def test_a_server_that_takes_no_limit_at_all_is_sent_none(server: Server, client: Callable[..., Hosted]) -> None:
    server.replies = [MAX_TOKENS, unsupported("max_completion_tokens"), completion("red")]
    assert client().answer(["a?"])[0].text == "red"
    assert options(server)[-1] == {"temperature": 0}


def test_every_request_under_way_learns_it(server: Server, client: Callable[..., Hosted]) -> None:
    server.replies, server.gate = [TEMPERATURE] * 3 + [completion("red")], threading.Barrier(3)
    assert len(client(concurrency=3).answer([f"{i}?" for i in range(6)])) == 6
    assert sum("temperature" in one for one in options(server)) == 3


@pytest.mark.parametrize(
    "reply",
    [
        bad(message="max_tokens is too large: 256. This model supports at most 16.", param="max_tokens"),
        bad(message="Unsupported parameter: 'messages'", param="messages"),
        bad(message="the image is no image"),
        (400, [1], {}),
        (400, "", {}),
    ],
)
def test_another_mistake_stays_one(reply: Reply, server: Server, client: Callable[..., Hosted]) -> None:
    server.replies = [reply, completion("red")]
    with pytest.raises(InputError, match="refuses the request"):
        client().answer(["a?"])
    assert len(server.seen) == 1


def test_a_server_that_refuses_what_is_not_sent_ends(server: Server, client: Callable[..., Hosted]) -> None:
    server.replies = [TEMPERATURE]
    with pytest.raises(InputError, match="refuses the request"):
        client().answer(["a?"])
    assert len(server.seen) == 2


def test_a_model_that_reasons_past_its_tokens_gets_more(server: Server, client: Callable[..., Hosted]) -> None:
    status, body, headers = completion("")
    spent = (status, {**body, "choices": [{"message": {"content": ""}, "finish_reason": "length"}]}, headers)
    server.replies = [MAX_TOKENS, spent, completion("red")]
    assert client(max_tokens=32).answer(["a?"])[0].text == "red"
    assert [one.get("max_completion_tokens") for one in options(server)] == [None, 32, 256]
    server.replies, server.seen[:] = [MAX_TOKENS, spent], []
    assert client(max_tokens=32).answer(["a?"])[0].text == ""
    assert options(server)[-1]["max_completion_tokens"] == 32 * HEADROOM


def test_a_server_that_does_not_answer_is_one_line(
    server: Server, waits: list[float], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    server.replies = [(500, "down", {})]
    assert cli.main(["probe", f"policy=hosted:{MODEL}@http://127.0.0.1:{server.server_port}/v1", "n=2"]) == 1
    shown = capsys.readouterr().err
    assert "did not answer" in shown and shown.count("\n") == 1
