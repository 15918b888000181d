"""Answerers of questions about images: the backbone of a checkpoint, or a hosted model."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import batched
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from vla.common.stored_image import Views
from vla.errors import InputError
from vla.models.hub import weights_digest

if TYPE_CHECKING:
    from vla.models.backbones.hosted import Hosted
    from vla.models.vla import VLA

HOSTED, HUB = "hosted:", "hub:"
ROWS = 32
"""The maximum number of questions in a batch."""
PIXELS = 24_000_000
"""The maximum number of padded pixels in a batch of several questions: 1 GB in memory."""


@runtime_checkable
class Answerer(Protocol):
    """A model that answers questions about images."""

    def __call__(self, questions: Sequence[str], images: Sequence[Views], tokens: int, role: str) -> list[str]:
        """Answers each question about its images.

        Args:
            questions: The questions.
            images: The images of each question.
            tokens: The maximum number of tokens of an answer.
            role: The system prompt of a hosted model (`vla.models.backbones.hosted.ROLES`); backbones ignore it.
        """
        ...


class BackboneAnswerer:
    """Greedy answers of a model's backbone."""

    def __init__(self, model: VLA) -> None:
        self.model = model

    def __call__(self, questions: Sequence[str], images: Sequence[Views], tokens: int, role: str) -> list[str]:
        """Answers each question about its images, in batches of up to `ROWS` questions."""
        answers = []
        for rows in self._groups(questions, images):
            batch = self.model.processor.question_prompt([q for q, _ in rows], [views for _, views in rows])
            answers += self.model.generate_text(batch, tokens)
        return answers

    def _groups(self, questions: Sequence[str], images: Sequence[Views]) -> Iterator[list[tuple[str, Views]]]:
        """Splits the questions, in order, into batches within the limits."""
        group, largest = list[tuple[str, Views]](), np.zeros(3, np.int64)
        for row in zip(questions, images, strict=True):
            shown = self.model.processor.shown.among(len(row[1]))
            frames = [p.frame for image in row[1].values() for p in shown.view(*image.shape[:2]).pieces]
            size = np.array([len(frames), *(max((frame[i] for frame in frames), default=0) for i in (0, 1))])
            padded = np.maximum(largest, size)
            if group and (len(group) == ROWS or (len(group) + 1) * padded.prod() > PIXELS):
                yield group
                group, padded = [], size
            group.append(row)
            largest = padded
        if group:
            yield group

    def embed(
        self, images: Sequence[Views], texts: Sequence[str]
    ) -> tuple[Float[np.ndarray, "n d"], Float[np.ndarray, "n d"]]:
        """The mean of the last hidden states over the tokens of each image, and over those of each text."""
        import torch

        model, found = self.model, list[tuple[np.ndarray, np.ndarray]]()
        for rows in batched(zip(images, texts, strict=True), ROWS):
            # In one batch, because no model family accepts a batch without images.
            questions = [" "] * len(rows) + [text for _, text in rows]
            batch = model.processor.question_prompt(questions, [views for views, _ in rows] + [{}] * len(rows))
            with torch.inference_mode():
                hidden = model.encode(batch.to(model.device))
            image_tokens = batch.input_ids == model.processor.image
            mask = torch.cat([image_tokens[: len(rows)], batch.attention_mask[len(rows) :]]).to(hidden.device)[
                ..., None
            ]
            means = ((hidden * mask).sum(1) / mask.sum(1)).float().cpu().numpy()
            found.append((means[: len(rows)], means[len(rows) :]))
        return np.concatenate([x for x, _ in found]), np.concatenate([y for _, y in found])


class HostedAnswerer:
    """Answers of a hosted model. Raises as `Hosted.answer`."""

    def __init__(self, hosted: Hosted) -> None:
        self.hosted = hosted

    def __call__(self, questions: Sequence[str], images: Sequence[Views], tokens: int, role: str) -> list[str]:
        """Answers each question about its images, with `role` as the system prompt."""
        self.hosted.max_tokens = tokens
        found = self.hosted.answer(questions, [list(views.values()) for views in images], role)
        return [answer.text for answer in found]


def open_answerer(name: str) -> Answerer:
    """Opens a model that answers questions.

    Args:
        name: The folder of a checkpoint, `hub:user/model`, a name that `vla train backbone=` accepts, or a hosted
            model: `hosted:FAMILY` of `vla models`, or `hosted:MODEL@URL` of any server (with the key in OPENAI_API_KEY,
            if set).

    Raises:
        InputError: the model does not exist.
    """
    if name.startswith(HOSTED):
        return HostedAnswerer(open_hosted(name.removeprefix(HOSTED)))
    from vla.common.device import accelerator
    from vla.models.vla import VLA
    from vla.policies.load import checkpoint

    if name.startswith(HUB) or (Path(name).is_dir() and name != "nano"):
        folder = checkpoint(name)
        if (folder / "processor.json").is_file():
            return BackboneAnswerer(VLA.load(folder).to(accelerator()))
    from vla.models.build import build

    return BackboneAnswerer(build(name, (), (), {}).eval().to(accelerator()))


def weights_of(name: str) -> str | None:
    """The digest of the weights that `open_answerer` loads (`vla.models.hub.weights_digest`); None if they are remote.

    Saved answers are identified by it.
    """
    if name.startswith(HOSTED):
        return None
    from vla.models.build import checkpoint_folder
    from vla.policies.load import checkpoint

    folder = checkpoint(name) if name.startswith(HUB) else checkpoint_folder(name) or Path(name)
    return weights_digest(folder) if folder.is_dir() else None


def preprocessing_of(answerer: Answerer) -> str | None:
    """The digest of a backbone's preprocessing (`Processor.digest`); None for a hosted model, which has none."""
    return answerer.model.processor.digest if isinstance(answerer, BackboneAnswerer) else None


def open_hosted(name: str) -> Hosted:
    """Opens FAMILY of `vla models`, or MODEL@URL of any server. Raises InputError if it is not a hosted model."""
    from vla.models.backbones.catalog import family
    from vla.models.backbones.hosted import Hosted, Price

    model, at, url = name.partition("@")
    if at:
        return Hosted(model, url, "OPENAI_API_KEY" if os.environ.get("OPENAI_API_KEY") else None)
    known = family(name)
    if known.role != "hosted":
        raise InputError(f"{name} is not a hosted model: set policy={name} without {HOSTED}")
    config = known.config()
    return Hosted(config["model"], config["base_url"], config["key_env"], Price(**config["price"]))
