"""The VLA: a backbone with an action head, its losses, and the decoding of text and actions.

Shapes: b rows, l tokens, d hidden size, v vocabulary size. The last of the v token ids are the head's tokens and the
action query token.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vla.common.renamed_keys import current_weight
from vla.common.scene_objects import POINT_SCALE
from vla.errors import InputError
from vla.models.action_heads.action_expert import ExpertContext
from vla.models.action_heads.action_head import Chunks, DecodeContext, LossRows
from vla.models.action_heads.build import UnknownHead
from vla.models.action_heads.decoding import Decoding, keys_values
from vla.models.backbone_inputs import DecoderInput, ImageInput
from vla.models.backbones.backbone import Backbone
from vla.models.backbones.build import build
from vla.models.batch import IGNORE, Batch, point_features
from vla.models.hub import card, checkpoint_of, fetch, write_config
from vla.models.masks import TOGETHER
from vla.models.processor import Processor
from vla.types import RTCPrefix

WORDS, POINTS, TOKENS, NUMBERS = range(4)
"""Kinds of loss elements: words of an answer, points predicted before an action, action tokens and action values."""
POINT_SMOOTHING = 1.0
"""Standard deviation of a coordinate's target, in percent of the image."""


class VLA(nn.Module):
    """A backbone whose vocabulary is extended by the tokens of the processor's action head, if there are robots.

    Two embeddings are added to each action token. The first is learned per position (step and component), since token
    ids are shared between components; the positions cover the largest action dimension among the robots. The second is
    an MLP of the conditioning values: the state, the predicted points and, with several robots, the embodiment.
    """

    action_dims: Int[Tensor, "r"]
    """Action dimension of each robot."""

    def __init__(self, backbone: Backbone, processor: Processor, smoothing: float = 2.0) -> None:
        super().__init__()
        self.backbone, self.processor, self.smoothing = backbone, processor, smoothing
        self.text_vocab = processor.text_vocab
        if processor.has_points:
            self._gaussian_label_smoothing("points", torch.tensor(processor.points), POINT_SMOOTHING)
        if (head := processor.head) is None:
            return
        num_ordinal_tokens = torch.arange(head.num_ordinal_tokens) + self.text_vocab
        if backbone.vocab_size == self.text_vocab:
            backbone.add_token_embeddings(head.vocab_size + 1)
            if head.num_ordinal_tokens:
                smooth_token_embeddings(backbone, num_ordinal_tokens)
        elif backbone.vocab_size != self.text_vocab + head.vocab_size + 1:
            raise InputError(
                f"the backbone has {backbone.vocab_size} token embeddings: not the tokenizer's {self.text_vocab}, "
                f"with or without {head.vocab_size} action tokens"
            )
        if head.num_ordinal_tokens:
            self._gaussian_label_smoothing("actions", num_ordinal_tokens, smoothing)
        action_dims = torch.tensor([robot.action_dim for robot in processor.robots])
        self.register_buffer("action_dims", action_dims, persistent=False)
        # With several robots the embodiment is conditioning, since their states and actions differ in meaning.
        self.num_embodiments = len(processor.robots) if len(processor.robots) > 1 else 0
        conditioning = processor.state_width + 3 * processor.points_width + self.num_embodiments
        if head.conditions_on_prefix:
            conditioning += (int(action_dims.max()) + 1) * processor.robots[0].horizon
        conditioning = max(conditioning, 1)
        if head.num_action_positions:
            self.action_position_embedding = nn.Embedding(head.num_action_positions, backbone.hidden_size)
            nn.init.normal_(self.action_position_embedding.weight, std=0.02)
            # The MLP of the conditioning values, added to every action token.
            self.conditioning_mlp = nn.Sequential(
                nn.Linear(conditioning, 2 * backbone.hidden_size),
                nn.GELU(),
                nn.Linear(2 * backbone.hidden_size, backbone.hidden_size),
            )
        if head.continuous is not None:
            self.continuous_head = head.continuous.module(backbone, conditioning)
        if processor.state_in_prompt:
            width, hidden = processor.state_width, backbone.hidden_size
            self.state_proj: nn.Module = nn.Linear(width, hidden)
            if processor.policy is not None and processor.policy.state == "image":
                self.state_proj = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden))

    @property
    def device(self) -> torch.device:
        """The device of the weights. The `generate_` methods move batches to it."""
        return next(self.parameters()).device

    def _gaussian_label_smoothing(self, name: str, rows: Int[Tensor, "n"], smoothing: float) -> None:
        """Gaussian targets for ordinal tokens, with a standard deviation of `smoothing` tokens."""
        index = torch.arange(len(rows))
        kernel = torch.exp(-0.5 * ((index[:, None] - index[None]) / max(smoothing, 1e-6)) ** 2)
        self.register_buffer(f"{name}_rows", rows, persistent=False)
        self.register_buffer(f"{name}_kernel", kernel / kernel.sum(1, keepdim=True), persistent=False)

    def forward(
        self, batch: Batch, pixels: Float[Tensor, "b k 3 h w"] | None = None
    ) -> tuple[Float[Tensor, "n"], Int[Tensor, "n"], Int[Tensor, "n"]]:
        """The loss of each element, the row that it belongs to, and its kind (`elements`).

        The target of a bin or a coordinate is a Gaussian over neighbouring tokens, with a standard deviation of
        `smoothing` or `POINT_SMOOTHING` tokens; with `smoothing` 0, and for other tokens, it is one-hot. The softmax is
        over the full vocabulary.

        Args:
            pixels: replace the batch's images, for example augmented (`Processor.placed`).
        """
        continuous = None if self.processor.head is None else self.processor.head.continuous
        cache = self.backbone.new_cache() if continuous is not None and continuous.reads_cache else None
        embeds, vision = self._prefix(batch, pixels)
        segments = batch.segments
        if self.processor.head is not None and self.processor.head.bidirectional:
            segments = segments.masked_fill(batch.input_ids >= self.text_vocab, TOGETHER)
        hidden, cache = self.backbone.forward(DecoderInput(embeds, batch.attention_mask, cache, vision, segments))
        losses = self._token_losses(batch, hidden)
        if continuous is not None and batch.continuous_mask.any():
            # Only the rows of robots; the cache also holds questions.
            indices = torch.nonzero(batch.robot >= 0).squeeze(1)
            robot_rows = batch.rows(indices)
            conditioning = self._conditioning(robot_rows, robot_rows.points)
            context = None if cache is None else self._expert_context(batch, indices, cache, conditioning)
            rows = LossRows(robot_rows, hidden[indices], conditioning, context)
            losses = torch.cat([losses, continuous.loss(self.continuous_head, rows)])
        return losses, *self.elements(batch)

    def _expert_context(
        self, batch: Batch, indices: Int[Tensor, "c"], cache: Any, conditioning: Float[Tensor, "c n"]
    ) -> ExpertContext:
        """What an action expert reads of the selected rows: their prompts and conditioning values."""
        in_prompt = torch.arange(batch.input_ids.shape[1], device=indices.device) < batch.prompt_length[:, None]
        start = self.backbone.next_position(batch.attention_mask & in_prompt, cache)[indices]
        length = int(batch.prompt_length[indices].max())
        layers = [(keys[indices, :, :length], values[indices, :, :length]) for keys, values in keys_values(cache)]
        return ExpertContext(layers, in_prompt[indices, :length], start, conditioning)

    def elements(self, batch: Batch) -> tuple[Int[Tensor, "n"], Int[Tensor, "n"]]:
        """The row and the kind (`WORDS` to `NUMBERS`) of each element of a batch's loss.

        Labelled tokens come first, then values with a continuous loss.
        """
        rows, columns = torch.nonzero(batch.labels[:, 1:] != IGNORE, as_tuple=True)
        acts = torch.where(columns + 1 < batch.prompt_length[rows], POINTS, TOKENS)
        kinds = torch.where(batch.robot[rows] >= 0, acts, WORDS)
        if self.processor.head is not None and self.processor.head.continuous is not None:
            numbers = torch.nonzero(batch.continuous_mask)[:, 0]
            kinds = torch.cat([kinds, torch.full_like(numbers, NUMBERS)])
            rows = torch.cat([rows, numbers])
        return rows, kinds

    def _token_losses(self, batch: Batch, hidden: Float[Tensor, "b l d"]) -> Float[Tensor, "n"]:
        labels = batch.labels[:, 1:]
        rows, columns = torch.nonzero(labels != IGNORE, as_tuple=True)
        target = labels[rows, columns]
        logp = F.log_softmax(self.backbone.logits(hidden[rows, columns]).float(), dim=-1)
        losses = -logp.gather(1, target[:, None]).squeeze(1)
        for name in ("points", "actions"):
            ordinal = getattr(self, f"{name}_rows", None)
            if ordinal is None or self.smoothing == 0:
                continue
            smoothed = (target >= ordinal[0]) & (target <= ordinal[-1])
            kernel = getattr(self, f"{name}_kernel")[target[smoothed] - ordinal[0]]
            soft = -(kernel * logp[smoothed, ordinal[0] : ordinal[-1] + 1]).sum(1)
            losses = losses.masked_scatter(smoothed, soft)
        return losses

    def encode(self, batch: Batch) -> Float[Tensor, "b l d"]:
        """The last hidden states of a batch that is on the model's device."""
        embeds, vision = self._prefix(batch)
        inputs = DecoderInput(embeds, batch.attention_mask, vision=vision, segments=batch.segments)
        return self.backbone.forward(inputs)[0]

    @torch.inference_mode()
    def generate_text(self, batch: Batch, max_tokens: int = 16) -> list[str]:
        """Greedy answers, up to the end token; action tokens are excluded."""
        batch = batch.to(self.device)
        decoding = self.decoding(batch)
        encoder = self.processor.encoder
        rows: list[list[int]] = [[] for _ in batch.input_ids]
        for _ in range(max_tokens):
            token = decoding.next_logits()[:, : self.text_vocab].argmax(-1)
            for row, token_id in zip(rows, token.tolist(), strict=True):
                row += [] if encoder.ended(row) else [token_id]
            if all(map(encoder.ended, rows)):
                break
            decoding.extend(self.backbone.embed_tokens(token[:, None]))
        return [self.processor.text(encoder.until_end(row)) for row in rows]

    @torch.inference_mode()
    def generate_actions(
        self, batch: Batch, prefix: RTCPrefix | None = None
    ) -> tuple[Chunks, Float[np.ndarray, "b p 2"]]:
        """Decodes the action chunk of each row. All rows belong to one robot (`Processor.robot_prompt`).

        Points are decoded greedily, one coordinate after the other, and then the head decodes the actions.

        Args:
            prefix: as in `DecodeContext`; None: an empty one.

        Returns:
            Normalised chunks, None where invalid, and the predicted points as fractions of the image, below 0 for a
            point that is not in it.

        Raises:
            InputError: without an action head, or for rows of several robots.
        """
        processor = self.processor
        if processor.head is None:
            raise InputError("this model has no action head: train it on demonstrations first")
        if len(numbers := set(batch.robot.tolist())) != 1 or -1 in numbers:
            raise InputError("actions are decoded for rows of one robot at a time")
        robot, batch = processor.robots[numbers.pop()], batch.to(self.device)
        # The prompt may have the tokens of the chunk, which depend on its prefix.
        if prefix is None:
            prefix = RTCPrefix(np.zeros((len(batch.input_ids), 0, robot.action_dim)))
        actions, count = batch.actions.clone(), prefix.committed.shape[1]
        actions[:, :count, : robot.action_dim] = torch.from_numpy(prefix.committed)
        batch = replace(batch, actions=actions, prefix_length=torch.full_like(batch.prefix_length, count))
        decoding = self.decoding(batch)
        # The coordinates, and `<eos>` for a point that is not in the image.
        allowed_token_ids = torch.tensor([*processor.points, processor.eos] if robot.points else [], device=self.device)
        values: list[Tensor] = []
        for _ in range(robot.point_tokens):
            values.append(decoding.next_logits()[:, allowed_token_ids].argmax(-1))
            decoding.extend(self.backbone.embed_tokens(allowed_token_ids[values[-1]][:, None]))
        coordinates = torch.stack(values, 1).float() if values else batch.state.new_zeros(len(batch.input_ids), 0)
        points = coordinates.unflatten(1, (-1, 2))
        points = torch.where((points < POINT_SCALE).all(-1, keepdim=True), points, -1)
        missing = processor.points_width - robot.points
        conditioning = self._conditioning(batch, point_features(F.pad(points, (0, 0, 0, missing), value=-1)))
        conditioning_embeds = (
            self.conditioning_mlp(conditioning)[:, None] if processor.head.num_action_positions else None
        )
        decode_tokens = partial(self._decode_tokens, decoding, batch, conditioning_embeds)
        module = getattr(self, "continuous_head", None)
        chunks = processor.head.decode(DecodeContext(decoding, robot, conditioning, decode_tokens, prefix, module))
        return chunks, ((points + 0.5) / POINT_SCALE).cpu().numpy()

    def decoding(self, batch: Batch) -> Decoding:
        """Prefills prompts that are on the model's device, for decoding."""
        embeds, vision = self._prefix(batch)
        policy = self.processor.policy
        segments = batch.segments if policy is not None and policy.state == "prompt" else None
        return Decoding(self.backbone, embeds, batch.attention_mask, vision, segments)

    def _decode_tokens(
        self,
        decoding: Decoding,
        batch: Batch,
        conditioning_embeds: Float[Tensor, "b 1 d"] | None,
        ids: Int[Tensor, "b n"],
        first: int,
    ) -> Float[Tensor, "b n d"]:
        """Appends tokens of a chunk, of which the first has index `first`, and returns their hidden states."""
        order = torch.arange(first, first + ids.shape[1], device=ids.device).expand_as(ids)
        embeds = self.backbone.embed_tokens(ids)
        if conditioning_embeds is not None:
            added = self.action_position_embedding(self._action_positions(order, batch)) + conditioning_embeds
            embeds = torch.where((ids >= self.text_vocab)[..., None], embeds + added, embeds)
        assert self.processor.head is not None
        return decoding.extend(embeds, self.processor.head.bidirectional)

    def _conditioning(self, batch: Batch, points: Float[Tensor, "b p 3"]) -> Float[Tensor, "b n"]:
        """The conditioning values of each row."""
        numbers = [batch.state, points.flatten(1)]
        if self.num_embodiments:
            numbers.append(F.one_hot(batch.robot.clamp(min=0), self.num_embodiments).to(points.dtype))
        if self.processor.head is not None and self.processor.head.conditions_on_prefix:
            steps = torch.arange(batch.actions.shape[1], device=batch.prefix_length.device)
            in_prefix = (steps < batch.prefix_length[:, None])[..., None]
            numbers.append(torch.cat([batch.actions * in_prefix, in_prefix], -1).flatten(1))
        conditioning = torch.cat(numbers, 1)
        return (
            conditioning if conditioning.shape[1] else conditioning.new_zeros(len(conditioning), 1)
        )  # n is at least 1

    def _action_positions(self, order: Int[Tensor, "b n"], batch: Batch) -> Int[Tensor, "b n"]:
        """Position embedding index of action tokens, by their index `order` in the chunk."""
        assert self.processor.head is not None
        return self.processor.head.action_positions(order, self.action_dims[batch.robot.clamp(min=0), None])

    def _prefix(
        self, batch: Batch, pixels: Float[Tensor, "b k 3 h w"] | None = None
    ) -> tuple[Float[Tensor, "b l d"], Any]:
        """The embeddings of a batch's tokens, and the encoded images."""
        if pixels is None:
            pixels, batch = self.processor.placed(batch)
        images = ImageInput(pixels, batch.image_mask, batch.content, batch.tiling)
        vision = self.backbone.encode_images(images) if batch.image_mask.any() else None
        embeds = self.backbone.embed(batch.input_ids, vision)
        action = batch.input_ids >= self.text_vocab
        if not action.any():
            return embeds, vision
        if self.processor.state_in_prompt:
            # It is the first of these tokens; an action token follows where the prompt has the chunk.
            is_state = action & (action.long().cumsum(1) == 1)
            state = self.state_proj(batch.state)[:, None].to(embeds.dtype)
            embeds, action = torch.where(is_state[..., None], state, embeds), action & ~is_state
        if self.processor.head is None or not self.processor.head.num_action_positions:
            return embeds, vision
        rows, columns = torch.nonzero(action, as_tuple=True)
        action_positions = self._action_positions(action.long().cumsum(1) - 1, batch)[rows, columns]
        added = (
            self.action_position_embedding(action_positions)
            + self.conditioning_mlp(self._conditioning(batch, batch.points))[rows]
        )
        return embeds.index_put((rows, columns), added.to(embeds.dtype), accumulate=True), vision

    def save(self, folder: Path, weights: Mapping[str, Tensor] | None = None) -> None:
        """Writes weights (safetensors), configuration and processor into `folder`, which must exist.

        Args:
            weights: replace the model's `state_dict`, for a model that is sharded over processes.
        """
        write_config(folder, {"backbone": self.backbone.config, "smoothing": self.smoothing})
        self.processor.save(folder)
        # Tied weights are stored once, as safetensors requires.
        unique = {storage_key(v): (k, v) for k, v in reversed(list((weights or self.state_dict()).items()))}
        save_file({k: v.contiguous() for k, v in unique.values()}, folder / "model.safetensors")

    def save_pretrained(self, folder: str | Path, license: str = "other") -> None:
        """Saves into a new folder, with a model card (README.md), as `vla push` uploads it.

        Raises:
            InputError: when `folder` is not empty.
        """
        folder = Path(folder)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(f"{folder} is not empty: remove it, or name another folder")
        folder.mkdir(parents=True, exist_ok=True)
        self.save(folder)
        (folder / "README.md").write_text(card(folder, license))

    @classmethod
    def from_pretrained(cls, name: str | Path, revision: str | None = None) -> VLA:
        """Loads a checkpoint from a folder, or from the hub ("user/model").

        Raises:
            InputError: when it is neither a checkpoint folder nor available on the hub.
        """
        return cls.load(checkpoint_of(fetch(name, revision)))

    @classmethod
    def load(cls, folder: Path) -> VLA:
        """Loads a checkpoint from a folder.

        Raises:
            InputError: when `folder` is not a checkpoint, or its files do not match.
        """
        folder = Path(folder)
        for name in ("config.json", "model.safetensors", "processor.json", "tokenizer.json"):
            if not (folder / name).exists():
                raise InputError(f"{folder} is not a checkpoint: {name} is missing")
        try:
            config = json.loads((folder / "config.json").read_text())
            model = cls(build(config["backbone"]), Processor.load(folder), config["smoothing"])
            weights = {current_weight(k): v for k, v in load_file(folder / "model.safetensors").items()}
            result = model.load_state_dict({k: v.float() for k, v in weights.items()}, strict=False)
            state = model.state_dict()
            loaded = {storage_key(state[name]) for name in state.keys() - result.missing_keys}
            missing = [name for name in result.missing_keys if storage_key(state[name]) not in loaded]
            if unmatched := missing + result.unexpected_keys:
                raise ValueError(f"{', '.join(unmatched)} only in the weights or only in the configuration")
        except UnknownHead as error:
            raise InputError(f"the checkpoint {folder} cannot be loaded: {error}") from error
        except Exception as error:
            reason = " ".join(str(error).split())  # some libraries' messages have several lines
            raise InputError(f"the checkpoint {folder} is damaged, or its files do not match: {reason}") from error
        return model.eval()


def storage_key(tensor: Tensor) -> tuple[int, torch.Size]:
    """A key of a tensor's storage, which tied weights share."""
    return (tensor.data_ptr() if tensor.numel() else id(tensor)), tensor.shape


@torch.no_grad()
def smooth_token_embeddings(backbone: Backbone, rows: Int[Tensor, "n"]) -> None:
    """Initialises ordinal tokens with similar embeddings for neighbours: random curves of a few low frequencies."""
    angles = torch.linspace(0, 1, len(rows))[:, None] * torch.arange(1, 9) * torch.pi
    basis = torch.cat([angles.sin(), angles.cos()], 1) / 8**0.5
    for weight in backbone.vocab_weights():
        weight[rows - backbone.vocab_size] = basis @ (torch.randn(basis.shape[1], weight.shape[1]) * weight.std())
