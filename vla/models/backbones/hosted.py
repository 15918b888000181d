"""Hosted models (GPT-4V, GPT-4o, Claude 3, Gemini, or a local server) with OpenAI's chat completions API.

They take text and images and return text: a baseline for visual questions, an annotator or a planner, not a backbone.
"""

from __future__ import annotations

import base64
import io
import os
import random
import re
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any, Literal

import httpx
import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vla.errors import Failure, InputError

ROLES = {
    "vqa": "Answer the question about the image with one word or a short phrase.",
    "annotator": "Describe what is asked for, exactly as it is seen in the image, and nothing else.",
    "plain": "",
    "planner": "List the steps of the robot that the task takes, one short command on each line, and nothing else.",
}

RETRIED = frozenset({408, 409, 429, 500, 502, 503, 504, 529})
FIRST_WAIT, LONGEST_WAIT = 0.5, 60.0
PATIENCE = 300.0
"""Longest accepted Retry-After [s]."""

# Suffix of the answering model's name after the requested name: a date, a version number or a revision.
SNAPSHOT = re.compile(r"-\d{3,}[\d-]*|-20\d\d-\d\d-\d\d|[@:][\w./-]+")

LIMITS = ("max_tokens", "max_completion_tokens")
"""Names of the option for the maximum answer length; for reasoning models OpenAI's servers only accept the second."""
HEADROOM = 64
"""Maximum factor by which the token limit is raised for models that reason before they answer."""
UNSUPPORTED = re.compile(
    r"unsupported|n[o']t support|unrecogni[sz]ed|unknown|extra_forbidden|unexpected|not (be )?(permitted|allowed)"
    r"|only .*(supported|allowed)",
    re.IGNORECASE,
)

RGBImage = UInt8[np.ndarray, "_h _w 3"]


class HostedError(Failure):
    """A server gave no valid answer in all attempts."""


@dataclass(frozen=True)
class Price:
    """Prices in US dollars per million tokens."""

    prompt: float
    completion: float


@dataclass(frozen=True)
class Answer:
    """An answer of a hosted model.

    `model` is the exact id of the answering model; token counts are None where the server does not report them.
    """

    text: str
    model: str
    finish: str
    prompt_tokens: int | None
    completion_tokens: int | None


@dataclass
class Usage:
    """Accumulated usage of a `Hosted`; `unreported` counts answers without reported token counts.

    Failed or refused requests are not included, although a provider may charge for them.
    """

    requests: int = 0
    retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    unreported: int = 0
    models: Counter[str] = field(default_factory=Counter)

    def cost(self, price: Price) -> float:
        """Cost of the reported tokens [US dollars]."""
        return (self.prompt_tokens * price.prompt + self.completion_tokens * price.completion) / 1e6


class Hosted:
    """A client of a hosted model.

    Network and server failures are retried after an exponential backoff with jitter, or after Retry-After. A parameter
    that the server refuses (`max_tokens`, `temperature`) is omitted or renamed in later requests.

    Args:
        base_url: address of the API (usually ending in /v1), to which /chat/completions is appended.
        key_env: environment variable of the API key. It is read at each request and not stored. None sends no key.
        timeout: of one attempt [s].
        attempts: maximum number of attempts per question.
        concurrency: maximum number of concurrent requests.

    Raises:
        InputError: for an invalid address.
    """

    def __init__(
        self,
        model: str,
        base_url: str,
        key_env: str | None = "OPENAI_API_KEY",
        price: Price | None = None,
        timeout: float = 60.0,
        attempts: int = 6,
        concurrency: int = 4,
        max_tokens: int = 256,
        image_format: Literal["png", "jpeg"] = "png",
    ) -> None:
        url = httpx.URL(base_url)
        if url.scheme not in ("http", "https") or not url.host or url.userinfo or url.query:
            raise InputError("base_url is http(s)://HOST/PATH, without a name, password or key in it")
        self.model, self.key_env, self.price = model, key_env, price
        self.timeout, self.attempts, self.concurrency = timeout, attempts, concurrency
        self.max_tokens, self.image_format = max_tokens, image_format
        self.usage = Usage()
        self._url = f"{base_url.rstrip('/')}/chat/completions"
        self._lock = threading.Lock()
        self._limits, self._headroom = list(LIMITS), 1
        self._options: dict[str, Any] = {"temperature": 0}

    @property
    def cost(self) -> float | None:
        """Cost so far [US dollars]; None without a price, or where the server does not report token counts."""
        return None if self.price is None or self.usage.unreported else self.usage.cost(self.price)

    def answer(
        self, questions: Sequence[str], images: Sequence[Sequence[RGBImage]] = (), role: str = "vqa"
    ) -> list[Answer]:
        """Answers questions, in order.

        Args:
            images: images of each question; none for questions without images.
            role: a key of `ROLES`, whose text precedes each question.

        Raises:
            InputError: for failures that a retry cannot resolve (a missing or wrong key, an unknown model, a refused
                request, an answer of another model than requested).
            HostedError: when all attempts failed.
        """
        if role not in ROLES:
            raise InputError(f"there is no role {role!r}: choose of {', '.join(ROLES)}")
        if images and len(images) != len(questions):
            raise InputError(f"{len(questions)} questions, but images for {len(images)}")
        self._headers()  # reports a missing key before any request
        views = images or [()] * len(questions)
        with httpx.Client(timeout=self.timeout) as client, ThreadPoolExecutor(max(1, self.concurrency)) as pool:
            futures = [pool.submit(self._query, client, q, v, role) for q, v in zip(questions, views, strict=True)]
            try:
                return [future.result() for future in futures]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _query(self, client: httpx.Client, question: str, images: Sequence[RGBImage], role: str) -> Answer:
        """Sends a question, with retries, and records the usage."""
        # The role is part of the question, since some chat templates take no system message.
        text = f"{ROLES[role]}\n\n{question}".lstrip("\n")
        pictures = [{"type": "image_url", "image_url": {"url": data_url(i, self.image_format)}} for i in images]
        content = [*pictures, {"type": "text", "text": text}] if pictures else text
        failure, wait, attempt = "", 0.0, 0
        while attempt < self.attempts:
            if wait:
                time.sleep(wait)
            with self._lock:
                self.usage.requests += 1
                self.usage.retries += bool(failure)
                limit = {name: self.max_tokens * self._headroom for name in self._limits[:1]}
                options = limit | self._options
            body = {"model": self.model, "messages": [{"role": "user", "content": content}], **options}
            requested_wait = None
            try:
                response = client.post(self._url, json=body, headers=self._headers())
            except httpx.TransportError as error:
                failure = self._redact(f"{type(error).__name__}: {error}")
            else:
                if response.status_code == 200:
                    answer = parse(response)
                    if answer is not None and not self._ran_out(self._account(answer), options):
                        return answer
                    if answer is not None:
                        continue
                    failure = "the body is not a chat completion"
                elif (name := refused(response, options)) is not None:
                    self._drop_option(name)
                    continue
                else:
                    self._check(response)
                    failure = f"HTTP {response.status_code}: {self._reason(response)}"
                    requested_wait = retry_after(response)
            wait = backoff(attempt) if requested_wait is None else requested_wait
            attempt += 1
            if wait > PATIENCE:
                failure += f"; it asks to wait {wait:.0f} s"
                break
        raise HostedError(f"{self._url} did not answer for {self.model}: {failure}")

    def _drop_option(self, name: str) -> None:
        """Omits an option from later requests, or uses its other name."""
        with self._lock:
            if name in self._limits[:1]:
                self._limits.pop(0)
                other = f": it is sent {self._limits[0]}" if self._limits else ""
            elif self._options.pop(name, None) is not None:
                other = ", so its answers may differ from run to run" if name == "temperature" else ""
            else:  # another request was faster
                return
        print(f"{self.model} takes no {name}{other}", file=sys.stderr, flush=True)

    def _ran_out(self, answer: Answer, options: Mapping[str, Any]) -> bool:
        """Whether the model used all its tokens without an answer, and the limit was or can be raised."""
        if answer.text or answer.finish != "length" or LIMITS[1] not in options:
            return False
        with self._lock:
            if options[LIMITS[1]] < self.max_tokens * self._headroom:
                return True
            more, self._headroom = self._headroom < HEADROOM, min(HEADROOM, 8 * self._headroom)
        return more

    def _account(self, answer: Answer) -> Answer:
        with self._lock:
            self.usage.models[answer.model] += 1
            self.usage.unreported += answer.prompt_tokens is None or answer.completion_tokens is None
            self.usage.prompt_tokens += answer.prompt_tokens or 0
            self.usage.completion_tokens += answer.completion_tokens or 0
        if not is_snapshot(self.model, answer.model):
            raise InputError(f"requested {self.model}, but {answer.model} answered: use the exact name of the model")
        return answer

    def _check(self, response: httpx.Response) -> None:
        """Raises InputError for a status that a retry would not change."""
        status = response.status_code
        if status in (401, 403):
            # The reason is omitted: it may contain the key.
            key = f"the key in {self.key_env}" if self.key_env else "a request without a key (set key_env)"
            raise InputError(f"{self._url} refuses {key} (HTTP {status})")
        reason = self._reason(response)
        if status == 404:
            raise InputError(f"{self._url} has no model {self.model}, or base_url is wrong (HTTP 404: {reason})")
        if "insufficient_quota" in response.text:
            raise InputError(f"{self._url}: the account has no quota left ({reason})")
        if status not in RETRIED:
            raise InputError(f"{self._url} refuses the request (HTTP {status}: {reason})")

    def _headers(self) -> dict[str, str]:
        if self.key_env is None:
            return {}
        key = os.environ.get(self.key_env, "").strip()
        if not key:
            raise InputError(f"set {self.key_env} to the key of {self._url}, or key_env=None where it takes none")
        if not key.isascii() or not key.isprintable() or " " in key:
            raise InputError(f"{self.key_env} holds characters that no key has")  # httpx would print the key
        return {"Authorization": f"Bearer {key}"}

    def _reason(self, response: httpx.Response) -> str:
        """The server's message in one line, without the key."""
        return self._redact(" ".join(response.text.split()))[:300] or response.reason_phrase

    def _redact(self, text: str) -> str:
        key = os.environ.get(self.key_env or "", "").strip()
        return text.replace(key, f"<{self.key_env}>") if key else text


def refused(response: httpx.Response, options: Mapping[str, Any]) -> str | None:
    """The option of a request that the server does not support; None if the error has another cause.

    OpenAI's servers report it as "param": {"error": {"message": "Unsupported parameter: 'max_tokens' is not supported
    with this model. …", "param": "max_tokens", "code": "unsupported_parameter"}}. Others name it in the message.
    """
    if response.status_code not in (400, 422):
        return None
    try:
        content: Any = response.json()
        error = content.get("error", content)
        error = error if isinstance(error, dict) else {"message": error}
    except (ValueError, AttributeError):
        error = {}
    message = f"{error.get('code', '')} {error.get('message') or response.text}"
    if not UNSUPPORTED.search(message):
        # A token limit that is too large must not be dropped.
        return param if (param := error.get("param")) in options and param not in LIMITS else None
    if (param := error.get("param")) in options:
        return str(param)
    named = [(match.start(), name) for name in options if (match := re.search(rf"\b{name}\b", message))]
    return min(named)[1] if named else None


def data_url(image: RGBImage, image_format: Literal["png", "jpeg"]) -> str:
    """The image as a data URL: "data:image/png;base64,…"."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, image_format, **({"quality": 95} if image_format == "jpeg" else {}))
    return f"data:image/{image_format};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def parse(response: httpx.Response) -> Answer | None:
    """The answer of a chat completion; None for an invalid body, or one without the model's name."""
    try:
        body: Any = response.json()
        choice, model = body["choices"][0], body["model"]
        message, finish = choice["message"], choice.get("finish_reason") or ""
        content = "" if finish == "content_filter" else message.get("content")
        text = message.get("refusal") if content is None else content
        usage = body.get("usage") or {}
        counts = usage.get("prompt_tokens"), usage.get("completion_tokens")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        return None
    valid = isinstance(text, str) and isinstance(model, str) and model and isinstance(finish, str)
    if not valid or any(not isinstance(count, int | None) for count in counts):
        return None
    return Answer(text, model, finish, *counts)


def is_snapshot(requested: str, served: str) -> bool:
    """Whether `served` is the requested model, or a dated or numbered release of it."""
    requested, served = requested.removeprefix("models/"), served.removeprefix("models/")
    stem = requested.removesuffix("-latest")
    return served == requested or (served.startswith(stem) and bool(SNAPSHOT.fullmatch(served[len(stem) :])))


def backoff(attempt: int) -> float:
    """Wait before the next attempt [s]: exponential, with a random factor from 0.5 to 1."""
    longest = min(LONGEST_WAIT, FIRST_WAIT * 2**attempt)
    return longest * random.uniform(0.5, 1)


def retry_after(response: httpx.Response) -> float | None:
    """The server's Retry-After [s], sent as seconds or as a date; None without one."""
    headers: Mapping[str, str] = response.headers
    value = headers.get("retry-after", "").strip()
    if re.fullmatch(r"\d+(\.\d+)?", value):
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError):
        return None
