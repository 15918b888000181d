"""Who answers questions about images: the backbone of a checkpoint, or a hosted model."""

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
"""Questions that a backbone is asked at once."""
PIXELS = 24_000_000
"""What their images have together at most, padded to one size: 1 GB in memory; one question is always asked."""


@runtime_checkable
class Answerer(Protocol):
    def __call__(self, questions: Sequence[str], images: Sequence[Views], tokens: int, role: str) -> list[str]:
        """An answer of up to so many tokens to each question about its images, in order.

        `role` (`vla.models.backbones.hosted.ROLES`) is what a hosted model is told beside the question; a backbone is
        told none.
        """
        ...


class BackboneAnswerer:
    """Greedy answers of a model's backbone."""

    def __init__(self, model: VLA) -> None:
        self.model = model

    def __call__(self, questions: Sequence[str], images: Sequence[Views], tokens: int, role: str) -> list[str]:
        answers = []
        for rows in self._groups(questions, images):
            batch = self.model.processor.question_prompt([q for q, _ in rows], [views for _, views in rows])
            answers += self.model.generate_text(batch, tokens)
        return answers

    def _groups(self, questions: Sequence[str], images: Sequence[Views]) -> Iterator[list[tuple[str, Views]]]:
        """The questions in order, as many together as there is room for."""
        group, largest = list[tuple[str, Views]](), np.zeros(3, np.int64)
        for row in zip(questions, images, strict=True):
            shown = self.model.processor.shown.among(len(row[1]))
            frames = [p.frame for image in row[1].values() for p in shown.view(*image.shape[:2]).pieces]
            own = np.array([len(frames), *(max((frame[i] for frame in frames), default=0) for i in (0, 1))])
            together = np.maximum(largest, own)
            if group and (len(group) == ROWS or (len(group) + 1) * together.prod() > PIXELS):
                yield group
                group, together = [], own
            group.append(row)
            largest = together
        if group:
            yield group

    def embed(
        self, images: Sequence[Views], texts: Sequence[str]
    ) -> tuple[Float[np.ndarray, "n d"], Float[np.ndarray, "n d"]]:
        """The mean of the last hidden states over the tokens of each image, and over those of each text alone."""
        import torch

        model, found = self.model, list[tuple[np.ndarray, np.ndarray]]()
        for rows in batched(zip(images, texts, strict=True), ROWS):
            # Both in one batch: to no family is a batch without any image given.
            asked = [" "] * len(rows) + [text for _, text in rows]
            batch = model.processor.question_prompt(asked, [views for views, _ in rows] + [{}] * len(rows))
            with torch.inference_mode():
                hidden = model.encode(batch.to(model.device))
            seen = batch.input_ids == model.processor.image
            chosen = torch.cat([seen[: len(rows)], batch.attention_mask[len(rows) :]]).to(hidden.device)[..., None]
            means = ((hidden * chosen).sum(1) / chosen.sum(1)).float().cpu().numpy()
            found.append((means[: len(rows)], means[len(rows) :]))
        return np.concatenate([x for x, _ in found]), np.concatenate([y for _, y in found])


class HostedAnswerer:
    """Raises what `Hosted.answer` does."""

    def __init__(self, hosted: Hosted) -> None:
        self.hosted = hosted

    def __call__(self, questions: Sequence[str], images: Sequence[Views], tokens: int, role: str) -> list[str]:
        self.hosted.max_tokens = tokens
        found = self.hosted.answer(questions, [list(views.values()) for views in images], role)
        return [answer.text for answer in found]


def open_answerer(name: str) -> Answerer:
    """A checkpoint's folder, `hub:user/model`, what `vla train backbone=` takes by name, or a hosted model:
    `hosted:FAMILY` of `vla models`, or `hosted:MODEL@URL` of any server, with the key in OPENAI_API_KEY if it is set.

    Raises InputError where there is no such model.
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
    """The digest of the weights that `open_answerer` opens (`vla.models.hub.weights_digest`), None where it reads no
    folder of this machine: what is kept of their answers belongs to them."""
    if name.startswith(HOSTED):
        return None
    from vla.models.build import checkpoint_folder
    from vla.policies.load import checkpoint

    folder = checkpoint(name) if name.startswith(HUB) else checkpoint_folder(name) or Path(name)
    return weights_digest(folder) if folder.is_dir() else None


def preprocessing_of(answerer: Answerer) -> str | None:
    """The digest of how a backbone is shown images and questions (`Processor.digest`), which its files' weights do not
    say; None of a hosted model, which is sent both as they are."""
    return answerer.model.processor.digest if isinstance(answerer, BackboneAnswerer) else None


def open_hosted(name: str) -> Hosted:
    """FAMILY of `vla models`, or MODEL@URL of any server. Raises InputError where it is none."""
    from vla.models.backbones.catalog import family
    from vla.models.backbones.hosted import Hosted, Price

    model, at, url = name.partition("@")
    if at:
        return Hosted(model, url, "OPENAI_API_KEY" if os.environ.get("OPENAI_API_KEY") else None)
    known = family(name)
    if known.role != "hosted":
        raise InputError(f"{name} is no hosted model: give policy={name} without {HOSTED}")
    config = known.config()
    return Hosted(config["model"], config["base_url"], config["key_env"], Price(**config["price"]))
