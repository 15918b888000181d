"""Our models in lmms-eval's harness: `python -m lmms_eval --model vla --model_args policy=FOLDER --tasks …`.

lmms-eval pins versions of its own, so it lives in an environment of its own, with this package in it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest
from PIL import Image

from vla.common.stored_image import Views
from vla.errors import InputError
from vla.evaluation.vlm.answerer import open_answerer

MAX_NEW_TOKENS = 128
"""Where a task names no number."""


def manifest() -> ModelManifest:
    """What the entry point `lmms_eval.models` names."""
    return ModelManifest(model_id="vla", chat_class_path=f"{__name__}.Harnessed")


class Harnessed(lmms):
    """A model of `open_answerer` that answers greedily; images may be several, and come before the text."""

    is_simple = False

    def __init__(self, policy: str, batch_size: int | str = 1, device: str | None = None, **unknown: Any) -> None:
        """`policy` is what `vla benchmark policy=` takes. Raises InputError where there is no such model, and for
        arguments that are not known; `batch_size` and `device` are what the harness hands on, and change nothing."""
        super().__init__()
        if named := [name for name, value in unknown.items() if name != "max_batch_size" and value is not None]:
            raise InputError(f"model_args {', '.join(sorted(named))}: unknown, vla takes policy=…")
        self._answer = open_answerer(policy)

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """An answer to each request, cut where the task's `until` is in it. Raises InputError for video or audio."""
        of_length: dict[int, list[int]] = defaultdict(list)
        for i, request in enumerate(requests):
            of_length[int(request.args[2].get("max_new_tokens") or MAX_NEW_TOKENS)].append(i)
        answers = [""] * len(requests)
        for tokens, members in of_length.items():
            asked = [self._asked(requests[i].args) for i in members]
            said = self._answer([text for text, _ in asked], [views for _, views in asked], tokens, "plain")
            for i, answer in zip(members, said, strict=True):
                answers[i] = _cut(answer, requests[i].args[2].get("until") or ())
        return answers

    def _asked(self, args: Sequence[Any]) -> tuple[str, Views]:
        _, messages_of, _, doc, task, split = args
        parts = [part for message in messages_of(self.task_dict[task][split][doc]) for part in message["content"]]
        if other := {part["type"] for part in parts} - {"text", "image"}:
            raise InputError(f"task {task} has {', '.join(sorted(other))}: only text and images can be asked about")
        images = [_pixels(part["url"]) for part in parts if part["type"] == "image"]
        text = "\n".join(part["text"] for part in parts if part["type"] == "text")
        return text, {str(i): image for i, image in enumerate(images)}

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        raise NotImplementedError("answers are generated, not ranked: take the task's generating variant")

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        raise NotImplementedError("questions of several rounds are not supported: take a task of one round")


def _pixels(image: Any) -> np.ndarray:
    """uint8 [h, w, 3] of a PIL image, or of a file's path."""
    if isinstance(image, str):
        with Image.open(image) as opened:
            return np.asarray(opened.convert("RGB"))
    return np.asarray(image.convert("RGB"))


def _cut(answer: str, until: str | Sequence[str]) -> str:
    for end in [until] if isinstance(until, str) else until:
        answer = answer.split(end)[0] if end else answer
    return answer.strip()
