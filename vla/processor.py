"""From examples and observations to token batches and back: the one path, saved with the weights.

A row is `<bos> image… image… prompt [state] <answer> target <eos> [prompt <answer> target <eos> …]`.
Each image is `tokens_per_image` placeholders; state and actions are rows beyond the text vocabulary,
one token a component; an action target has a fixed length and so no `<eos>`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from tokenizers import Tokenizer
from torch import Tensor

from vla.actions.bins import UniformBins
from vla.embodiment import Embodiment
from vla.errors import InputError
from vla.images import normalize, resize
from vla.normalize import QuantileNormalizer
from vla.types import Example, Observation

IGNORE = -100
"""The label of a position that has no loss."""
PAD, BOS, EOS, IMAGE, ANSWER = SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<image>", "<answer>")
Turn = tuple[str, "str | Float[np.ndarray, 'h a'] | None"]


@dataclass(frozen=True)
class Batch:
    """Tensors of b rows with up to k images and l tokens. `labels` is IGNORE where there is no loss."""

    pixel_values: Float[Tensor, "b k 3 h w"]
    image_mask: Bool[Tensor, "b k"]
    input_ids: Int[Tensor, "b l"]
    attention_mask: Bool[Tensor, "b l"]
    labels: Int[Tensor, "b l"]
    source: tuple[str, ...]


@dataclass(frozen=True)
class RobotSpec:
    """What turns this embodiment's states and actions into tokens: fixed when training starts."""

    embodiment: Embodiment
    horizon: int
    state: QuantileNormalizer
    action: QuantileNormalizer
    statistics_hash: str
    bins: UniformBins = UniformBins()

    @property
    def state_tokens(self) -> int:
        return len(self.embodiment.state)

    @property
    def action_tokens(self) -> int:
        return self.horizon * len(self.embodiment.action)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RobotSpec:
        return cls(
            embodiment=Embodiment.from_dict(values["embodiment"]),
            horizon=values["horizon"],
            state=QuantileNormalizer(tuple(values["state"]["low"]), tuple(values["state"]["high"])),
            action=QuantileNormalizer(tuple(values["action"]["low"]), tuple(values["action"]["high"])),
            statistics_hash=values["statistics_hash"],
            bins=UniformBins(**values["bins"]),
        )


class Processor:
    """Builds batches for one backbone, and reads its tokens. `robot` is None for a pure VLM."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        image_size: int,
        tokens_per_image: int,
        robot: RobotSpec | None = None,
        mean: tuple[float, ...] = (0.5, 0.5, 0.5),
        std: tuple[float, ...] = (0.25, 0.25, 0.25),
    ) -> None:
        self.tokenizer, self.robot = tokenizer, robot
        self.image_size, self.tokens_per_image = image_size, tokens_per_image
        self.mean, self.std = tuple(mean), tuple(std)
        self.pad, self.bos, self.eos, self.image, self.answer = (tokenizer.token_to_id(t) for t in SPECIAL_TOKENS)
        self.text_vocab: int = tokenizer.get_vocab_size()
        self._encode = lru_cache(maxsize=65536)(self._encode_text)

    def _encode_text(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def batch(self, examples: Sequence[Example]) -> Batch:
        """Training rows, padded on the right."""
        rows = [self._row([(e.prompt, e.target), *e.turns], len(e.images), e.state, e.mask) for e in examples]
        return self._collate(rows, [e.images for e in examples], tuple(e.source for e in examples), left=False)

    def robot_prompt(
        self, observations: Sequence[Observation], prefix: Float[np.ndarray, "b k a"] | None = None
    ) -> Batch:
        """Rows that end where the action is to be decoded, after `prefix` where given; padded on the left."""
        rows, images = [], []
        for i, observation in enumerate(observations):
            views = self._views(observation)
            ids, labels = self._row([(observation.instruction, None)], len(views), observation.state, None)
            if prefix is not None:
                forced = self.action_ids(prefix[i])
                ids, labels = ids + forced, labels + [IGNORE] * len(forced)
            rows.append((ids, labels))
            images.append(views)
        return self._collate(rows, images, ("",) * len(rows), left=True)

    def question_prompt(
        self, questions: Sequence[str], images: Sequence[Mapping[str, UInt8[np.ndarray, "h w 3"]]]
    ) -> Batch:
        """Rows that end where the answer is to be decoded; padded on the left."""
        rows = [self._row([(q, None)], len(v), None, None) for q, v in zip(questions, images, strict=True)]
        return self._collate(rows, images, ("",) * len(rows), left=True)

    def text(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True)).strip()

    def action_ids(self, actions: Float[np.ndarray, "h a"]) -> list[int]:
        robot = self._robot()
        return [self.text_vocab + int(t) for t in robot.bins.encode(robot.action.normalize(actions))]

    def actions(self, ids: Int[np.ndarray, "n"]) -> Float[np.ndarray, "h a"] | None:
        """The chunk that these tokens say, in the embodiment's units; None when they say none."""
        robot = self._robot()
        normalized = robot.bins.decode(ids - self.text_vocab, len(robot.embodiment.action))
        if normalized is None or len(normalized) != robot.horizon:
            return None
        actions = robot.action.denormalize(normalized)
        return np.clip(actions, robot.embodiment.action_low, robot.embodiment.action_high)

    def _robot(self) -> RobotSpec:
        if self.robot is None:
            raise InputError("this checkpoint is a vision-language model without actions: train it on demonstrations")
        return self.robot

    def _views(self, observation: Observation) -> dict[str, UInt8[np.ndarray, "h w 3"]]:
        cameras = self._robot().embodiment.cameras
        for camera in cameras:
            if camera not in observation.images:
                raise InputError(f"camera {camera} is missing from the observation, which has {list(observation.images)}")
        return {camera: observation.images[camera] for camera in cameras}

    def _row(
        self,
        turns: Sequence[Turn],
        images: int,
        state: Float[np.ndarray, "s"] | None,
        mask: Bool[np.ndarray, "h"] | None,
    ) -> tuple[list[int], list[int]]:
        ids = [self.bos] + [self.image] * (images * self.tokens_per_image)
        labels = [IGNORE] * len(ids)
        for prompt, target in turns:
            question = list(self._encode(" " + prompt.strip()))
            if state is not None:
                robot = self._robot()
                question += [self.text_vocab + int(t) for t in robot.bins.encode(robot.state.normalize(state)[None])]
            question.append(self.answer)
            ids += question
            labels += [IGNORE] * len(question)
            if target is None:
                continue
            if isinstance(target, str):
                answer = [*self._encode(" " + target.strip()), self.eos]
                labels += answer
            else:
                answer = self.action_ids(target)
                width = len(answer) // len(target)
                inside = np.ones(len(target), bool) if mask is None else mask
                labels += [t if inside[i // width] else IGNORE for i, t in enumerate(answer)]
            ids += answer
        return ids, labels

    def _collate(
        self,
        rows: Sequence[tuple[list[int], list[int]]],
        images: Sequence[Mapping[str, UInt8[np.ndarray, "h w 3"]]],
        source: tuple[str, ...],
        left: bool,
    ) -> Batch:
        length = max(len(ids) for ids, _ in rows)
        input_ids = np.full((len(rows), length), self.pad)
        labels = np.full((len(rows), length), IGNORE)
        attention = np.zeros((len(rows), length), bool)
        for i, (ids, row_labels) in enumerate(rows):
            span = slice(length - len(ids), length) if left else slice(0, len(ids))
            input_ids[i, span], labels[i, span], attention[i, span] = ids, row_labels, True
        most = max(1, max(len(views) for views in images))
        pixels = np.zeros((len(rows), most, self.image_size, self.image_size, 3), np.uint8)
        image_mask = np.zeros((len(rows), most), bool)
        for i, views in enumerate(images):
            for j, image in enumerate(views.values()):
                pixels[i, j], image_mask[i, j] = resize(image, self.image_size), True
        normalized = normalize(pixels.reshape(-1, *pixels.shape[2:]), self.mean, self.std)
        return Batch(
            pixel_values=torch.from_numpy(normalized).unflatten(0, (len(rows), most)),
            image_mask=torch.from_numpy(image_mask),
            input_ids=torch.from_numpy(input_ids),
            attention_mask=torch.from_numpy(attention),
            labels=torch.from_numpy(labels),
            source=source,
        )

    def save(self, folder: Path) -> None:
        self.tokenizer.save(str(folder / "tokenizer.json"))
        values = {
            "image_size": self.image_size,
            "tokens_per_image": self.tokens_per_image,
            "mean": self.mean,
            "std": self.std,
            "robot": None if self.robot is None else asdict(self.robot),
        }
        (folder / "processor.json").write_text(json.dumps(values, indent=1))

    @classmethod
    def load(cls, folder: Path) -> Processor:
        values = json.loads((folder / "processor.json").read_text())
        robot = values.pop("robot")
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        return cls(tokenizer, robot=None if robot is None else RobotSpec.from_dict(robot), **values)
