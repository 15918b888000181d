"""Adapter for lmms-eval: `python -m lmms_eval --model vla --model_args policy=FOLDER --tasks …`.

lmms-eval pins versions of its dependencies, so it needs a separate environment, with this package installed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, override

import numpy as np
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest
from PIL import Image

from vla.common.stored_image import Views
from vla.errors import InputError
from vla.evaluation.vlm.answerer import open_answerer

MAX_NEW_TOKENS = 128
"""The default of tasks without a limit."""


def manifest() -> ModelManifest:
    """The manifest for the entry point `lmms_eval.models`."""
    return ModelManifest(model_id="vla", chat_class_path=f"{__name__}.Harnessed")


class Harnessed(lmms):
    """A model of `open_answerer` with greedy decoding; the images of a question precede its text."""

    is_simple = False

    def __init__(self, policy: str, batch_size: int | str = 1, device: str | None = None, **unknown: Any) -> None:
        """Opens the model.

        Args:
            policy: As in `vla benchmark policy=`.
            batch_size: Ignored; passed by the harness.
            device: Ignored; passed by the harness.
            **unknown: Other arguments, which are not supported.

        Raises:
            InputError: the model does not exist, or an argument is unknown.
        """
        super().__init__()
        if named := [name for name, value in unknown.items() if name != "max_batch_size" and value is not None]:
            raise InputError(f"unknown model_args {', '.join(sorted(named))}: vla takes policy=…")
        self._answer = open_answerer(policy)

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Answers each request, up to the task's `until`. Raises InputError for video or audio."""
        of_length: dict[int, list[int]] = defaultdict(list)
        for i, request in enumerate(requests):
            of_length[int(request.args[2].get("max_new_tokens") or MAX_NEW_TOKENS)].append(i)
        answers = [""] * len(requests)
        for tokens, members in of_length.items():
            questions = [self._question(requests[i].args) for i in members]
            answered = self._answer([text for text, _ in questions], [views for _, views in questions], tokens, "plain")
            for i, answer in zip(members, answered, strict=True):
                answers[i] = _cut(answer, requests[i].args[2].get("until") or ())
        return answers

    def _question(self, args: Sequence[Any]) -> tuple[str, Views]:
        _, messages_of, _, doc, task, split = args
        parts = [part for message in messages_of(self.task_dict[task][split][doc]) for part in message["content"]]
        if other := {part["type"] for part in parts} - {"text", "image"}:
            raise InputError(f"task {task} has {', '.join(sorted(other))}: only text and images are supported")
        images = [_pixels(part["url"]) for part in parts if part["type"] == "image"]
        text = "\n".join(part["text"] for part in parts if part["type"] == "text")
        return text, {str(i): image for i, image in enumerate(images)}

    @override
    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        raise NotImplementedError("answers are generated, not ranked: use the generative variant of the task")

    @override
    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        raise NotImplementedError("multi-round questions are not supported: use a task with one round")


def _pixels(image: Any) -> np.ndarray:
    """uint8 [h, w, 3] of a PIL image or an image file."""
    if isinstance(image, str):
        with Image.open(image) as opened:
            return np.asarray(opened.convert("RGB"))
    return np.asarray(image.convert("RGB"))


def _cut(answer: str, until: str | Sequence[str]) -> str:
    for end in [until] if isinstance(until, str) else until:
        answer = answer.split(end)[0] if end else answer
    return answer.strip()
