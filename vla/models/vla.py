"""The VLA: a backbone and an action head. Loss, text and action decoding.

Shapes: b rows, l tokens, d hidden size, v vocabulary rows; the last of v are those of the head, and the blank.
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
from vla.models.action_heads.action_head import Cached, Chunks, DecodeContext
from vla.models.action_heads.decoding import Decoding, keys_values
from vla.models.backbones.backbone import Backbone, ImageLayout
from vla.models.backbones.build import build
from vla.models.batch import IGNORE, Batch, point_features
from vla.models.hub import card, checkpoint_of, fetch, write_config
from vla.models.masks import TOGETHER
from vla.models.processor import Processor

WORDS, POINTS, TOKENS, NUMBERS = range(4)
"""Kinds of what has a loss: words of an answer, points that are said before an action, and actions said as tokens or
learned as numbers."""
POINT_SMOOTHING = 1.0
"""The width of a coordinate's target, in percent of the image."""


class VLA(nn.Module):
    """A backbone whose vocabulary is extended by the rows of the processor's head, when that knows a robot.

    To each action token are added a learned embedding of its place (which step and component), since the rows are
    shared between components, and an MLP of the state, of the points that were said and, where the model drives
    several robots, of which one it is. Places are laid out for the widest robot; a narrower one leaves some unused.
    """

    action_dims: Int[Tensor, "r"]
    """Components of an action of each robot."""

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
            backbone.add_token_embeddings(head.rows + 1)
            if head.num_ordinal_tokens:
                smooth_token_embeddings(backbone, num_ordinal_tokens)
        elif backbone.vocab_size != self.text_vocab + head.rows + 1:
            raise InputError(
                f"the backbone has {backbone.vocab_size} rows: not the tokenizer's {self.text_vocab}, "
                f"with or without {head.rows} action rows"
            )
        if head.num_ordinal_tokens:
            self._gaussian_label_smoothing("actions", num_ordinal_tokens, smoothing)
        action_dims = torch.tensor([robot.action_dim for robot in processor.robots])
        self.register_buffer("action_dims", action_dims, persistent=False)
        # Which robot it is, where there are several: the numbers of one mean nothing to another.
        self.num_embodiments = len(processor.robots) if len(processor.robots) > 1 else 0
        conditioning = processor.state_width + 3 * processor.points_width + self.num_embodiments
        if head.conditions_on_prefix:
            conditioning += (int(action_dims.max()) + 1) * processor.robots[0].horizon
        conditioning = max(conditioning, 1)
        if head.num_action_positions:
            self.action_position_embedding = nn.Embedding(head.num_action_positions, backbone.hidden_size)
            nn.init.normal_(self.action_position_embedding.weight, std=0.02)
            # Numbers enter as numbers, into every place where an action is asked for.
            self.conditioning_mlp = nn.Sequential(
                nn.Linear(conditioning, 2 * backbone.hidden_size),
                nn.GELU(),
                nn.Linear(2 * backbone.hidden_size, backbone.hidden_size),
            )
        if head.continuous is not None:
            self.continuous_head = head.continuous.module(backbone, conditioning)

    @property
    def device(self) -> torch.device:
        """Where the weights are; batches that it generates from may be anywhere."""
        return next(self.parameters()).device

    def _gaussian_label_smoothing(self, name: str, rows: Int[Tensor, "n"], smoothing: float) -> None:
        """Rows that are values on a line: their targets are Gaussians, `smoothing` rows wide."""
        at = torch.arange(len(rows))
        kernel = torch.exp(-0.5 * ((at[:, None] - at[None]) / max(smoothing, 1e-6)) ** 2)
        self.register_buffer(f"{name}_rows", rows, persistent=False)
        self.register_buffer(f"{name}_kernel", kernel / kernel.sum(1, keepdim=True), persistent=False)

    def forward(
        self, batch: Batch, pixels: Float[Tensor, "b k 3 h w"] | None = None
    ) -> tuple[Float[Tensor, "n"], Int[Tensor, "n"], Int[Tensor, "n"]]:
        """The loss of each element, the row that it belongs to, and its kind (`elements`).

        `pixels` stand for the batch's images (`Processor.pixels`), augmented for instance.

        The target of a bin or a coordinate is a Gaussian over neighbouring rows (`smoothing` or `POINT_SMOOTHING`
        rows wide; plain for `smoothing` 0), that of another token is one-hot; all are over all rows of the vocabulary.
        """
        continuous = None if self.processor.head is None else self.processor.head.continuous
        cache = self.backbone.new_cache() if continuous is not None and continuous.reads_cache else None
        embeds, vision = self._prefix(batch, pixels)
        segments = batch.segments
        if self.processor.head is not None and self.processor.head.bidirectional:
            segments = segments.masked_fill(batch.input_ids >= self.text_vocab, TOGETHER)
        hidden, cache = self.backbone.forward(embeds, batch.attention_mask, cache, vision, segments)
        losses = self._token_losses(batch, hidden)
        if continuous is not None and batch.continuous_mask.any():
            # The cache is the forward's own: what it holds of questions is left out.
            chosen = torch.nonzero(batch.robot >= 0).squeeze(1)
            rows = batch.rows(chosen)
            cached = None if cache is None else self._cached(batch, chosen, cache)
            conditioning = self._conditioning(rows, rows.points)
            losses = torch.cat(
                [losses, continuous.loss(self.continuous_head, rows, hidden[chosen], conditioning, cached)]
            )
        return losses, *self.elements(batch)

    def _cached(self, batch: Batch, chosen: Int[Tensor, "c"], cache: Any) -> Cached:
        """What is cached of the rows `chosen`, and where each goes on after what comes before its actions."""
        columns = torch.arange(batch.input_ids.shape[1], device=chosen.device)
        before = batch.attention_mask & (columns < batch.prompt_length[:, None])
        layers = [(keys[chosen], values[chosen]) for keys, values in keys_values(cache)]
        return Cached(layers, self.backbone.next_position(before, cache)[chosen])

    def elements(self, batch: Batch) -> tuple[Int[Tensor, "n"], Int[Tensor, "n"]]:
        """The row and the kind (`WORDS` to `NUMBERS`) of each element of a batch's loss: the labelled tokens, then what
        is regressed."""
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
            on_line = getattr(self, f"{name}_rows", None)
            if on_line is None or self.smoothing == 0:
                continue
            chosen = (target >= on_line[0]) & (target <= on_line[-1])
            kernel = getattr(self, f"{name}_kernel")[target[chosen] - on_line[0]]
            soft = -(kernel * logp[chosen, on_line[0] : on_line[-1] + 1]).sum(1)
            losses = losses.masked_scatter(chosen, soft)
        return losses

    def encode(self, batch: Batch) -> Float[Tensor, "b l d"]:
        """The last hidden states of prompts, which are on the model's device."""
        embeds, vision = self._prefix(batch)
        return self.backbone.forward(embeds, batch.attention_mask, None, vision, batch.segments)[0]

    @torch.inference_mode()
    def generate_text(self, batch: Batch, max_tokens: int = 16) -> list[str]:
        """Greedy answers, up to `<eos>`; action rows cannot be chosen."""
        batch = batch.to(self.device)
        decoding = self.decoding(batch)
        encoder = self.processor.encoder
        rows: list[list[int]] = [[] for _ in batch.input_ids]
        for _ in range(max_tokens):
            token = decoding.next_logits()[:, : self.text_vocab].argmax(-1)
            for row, said in zip(rows, token.tolist(), strict=True):
                row += [] if encoder.ended(row) else [said]
            if all(map(encoder.ended, rows)):
                break
            decoding.extend(self.backbone.embed_tokens(token[:, None]))
        return [self.processor.text(encoder.until_end(row)) for row in rows]

    @torch.inference_mode()
    def generate_actions(
        self,
        batch: Batch,
        action_prefix: Float[np.ndarray, "b k a"] | None = None,
        previous_chunk_leftover: Float[np.ndarray, "b m a"] | None = None,
        vjp: bool = False,
    ) -> tuple[Chunks, Float[np.ndarray, "b p 2"]]:
        """The normalised chunk of each row, None where it is invalid, and the points that were said before: fractions
        of the image, below 0 for one not in it.

        Points are greedy, one coordinate after the other; actions are said as the head says them, the first k of them
        `action_prefix`, normalised; `previous_chunk_leftover` and `vjp` as in `DecodeContext`. All rows are of one robot (`Processor.robot_prompt`).
        """
        processor = self.processor
        if processor.head is None:
            raise InputError("this model has no action head: train it on demonstrations first")
        if len(numbers := set(batch.robot.tolist())) != 1 or -1 in numbers:
            raise InputError("actions are decoded for rows of one robot at a time")
        robot, batch = processor.robots[numbers.pop()], batch.to(self.device)
        decoding = self.decoding(batch)
        # The coordinates, and `<eos>` for what is not in the image.
        allowed_token_ids = torch.tensor([*processor.points, processor.eos] if robot.points else [], device=self.device)
        values: list[Tensor] = []
        for _ in range(robot.point_tokens):
            values.append(decoding.next_logits()[:, allowed_token_ids].argmax(-1))
            decoding.extend(self.backbone.embed_tokens(allowed_token_ids[values[-1]][:, None]))
        said = torch.stack(values, 1).float() if values else batch.state.new_zeros(len(batch.input_ids), 0)
        points = said.unflatten(1, (-1, 2))
        points = torch.where((points < POINT_SCALE).all(-1, keepdim=True), points, -1)
        unsaid = processor.points_width - robot.points
        if action_prefix is not None:
            actions = batch.actions.clone()
            actions[:, : action_prefix.shape[1], : robot.action_dim] = torch.from_numpy(action_prefix)
            batch = replace(
                batch, actions=actions, prefix_length=torch.full_like(batch.prefix_length, action_prefix.shape[1])
            )
        conditioning = self._conditioning(batch, point_features(F.pad(points, (0, 0, 0, unsaid), value=-1)))
        conditioning_embeds = (
            self.conditioning_mlp(conditioning)[:, None] if processor.head.num_action_positions else None
        )
        decode_tokens = partial(self._decode_tokens, decoding, batch, conditioning_embeds)
        module = getattr(self, "continuous_head", None)
        chunks = processor.head.decode(
            DecodeContext(
                decoding, robot, conditioning, decode_tokens, action_prefix, module, previous_chunk_leftover, vjp
            )
        )
        return chunks, ((points + 0.5) / POINT_SCALE).cpu().numpy()

    def decoding(self, batch: Batch) -> Decoding:
        """Prompts, which are on the model's device, with what is to be said after them."""
        embeds, vision = self._prefix(batch)
        return Decoding(self.backbone, embeds, batch.attention_mask, vision)

    def _decode_tokens(
        self,
        decoding: Decoding,
        batch: Batch,
        conditioning_embeds: Float[Tensor, "b 1 d"] | None,
        ids: Int[Tensor, "b n"],
        first: int,
    ) -> Float[Tensor, "b n d"]:
        """The hidden states of further tokens of an action, the first of them its `first`-th."""
        order = torch.arange(first, first + ids.shape[1], device=ids.device).expand_as(ids)
        words = self.backbone.embed_tokens(ids)
        embeds = words + self.action_position_embedding(self._action_positions(order, batch)) + conditioning_embeds
        assert self.processor.head is not None
        embeds = torch.where((ids >= self.text_vocab)[..., None], embeds, words)
        return decoding.extend(embeds, self.processor.head.bidirectional)

    def _conditioning(self, batch: Batch, points: Float[Tensor, "b p 3"]) -> Float[Tensor, "b n"]:
        """The numbers that each robot is told."""
        numbers = [batch.state, points.flatten(1)]
        if self.num_embodiments:
            numbers.append(F.one_hot(batch.robot.clamp(min=0), self.num_embodiments).to(points.dtype))
        if self.processor.head is not None and self.processor.head.conditions_on_prefix:
            steps = torch.arange(batch.actions.shape[1], device=batch.prefix_length.device)
            under_way = (steps < batch.prefix_length[:, None])[..., None]
            numbers.append(torch.cat([batch.actions * under_way, under_way], -1).flatten(1))
        conditioning = torch.cat(numbers, 1)
        return (
            conditioning if conditioning.shape[1] else conditioning.new_zeros(len(conditioning), 1)
        )  # where there is nothing to tell

    def _action_positions(self, order: Int[Tensor, "b n"], batch: Batch) -> Int[Tensor, "b n"]:
        """The slot of each row's action tokens, numbered through."""
        assert self.processor.head is not None
        return self.processor.head.action_positions(order, self.action_dims[batch.robot.clamp(min=0), None])

    def _prefix(
        self, batch: Batch, pixels: Float[Tensor, "b k 3 h w"] | None = None
    ) -> tuple[Float[Tensor, "b l d"], Any]:
        """The embeddings of a batch's tokens, and what the backbone saw."""
        pixels = self.processor.pixels(batch.images) if pixels is None else pixels
        vision = self.backbone.encode_images(pixels, batch.image_mask, ImageLayout(batch.content, batch.tiling))
        embeds = self.backbone.embed(batch.input_ids, vision)
        action = batch.input_ids >= self.text_vocab
        if not action.any():
            return embeds, vision
        rows, columns = torch.nonzero(action, as_tuple=True)
        action_positions = self._action_positions(action.long().cumsum(1) - 1, batch)[rows, columns]
        chosen = (
            self.action_position_embedding(action_positions)
            + self.conditioning_mlp(self._conditioning(batch, batch.points))[rows]
        )
        return embeds.index_put((rows, columns), chosen.to(embeds.dtype), accumulate=True), vision

    def save(self, folder: Path, weights: Mapping[str, Tensor] | None = None) -> None:
        """Weights (safetensors), configuration and processor into `folder`, which must exist.

        `weights` stand for the model's own (`state_dict`): those of a model of which each process holds a part.
        """
        write_config(folder, {"backbone": self.backbone.config, "smoothing": self.smoothing})
        self.processor.save(folder)
        # Of weights that are tied, safetensors holds one.
        once = {place(v): (k, v) for k, v in reversed(list((weights or self.state_dict()).items()))}
        save_file({k: v.contiguous() for k, v in once.values()}, folder / "model.safetensors")

    def save_pretrained(self, folder: str | Path, license: str = "other") -> None:
        """`save` into a new folder, with a model card (README.md): what `vla push` uploads.

        Raises InputError when there is something at `folder`.
        """
        folder = Path(folder)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError(f"{folder} is not empty: remove it, or name another folder")
        folder.mkdir(parents=True, exist_ok=True)
        self.save(folder)
        (folder / "README.md").write_text(card(folder, license))

    @classmethod
    def from_pretrained(cls, name: str | Path, revision: str | None = None) -> VLA:
        """`load` from a folder, or from the hub ("user/model"). Raises InputError when it is nowhere to be had."""
        return cls.load(checkpoint_of(fetch(name, revision)))

    @classmethod
    def load(cls, folder: Path) -> VLA:
        """Raises InputError when `folder` is no checkpoint or its files do not belong together."""
        folder = Path(folder)
        for name in ("config.json", "model.safetensors", "processor.json", "tokenizer.json"):
            if not (folder / name).exists():
                raise InputError(f"{folder} is not a checkpoint: {name} is missing")
        try:
            config = json.loads((folder / "config.json").read_text())
            model = cls(build(config["backbone"]), Processor.load(folder), config["smoothing"])
            weights = {current_weight(k): v for k, v in load_file(folder / "model.safetensors").items()}
            lacking = model.load_state_dict({k: v.float() for k, v in weights.items()}, strict=False)
            state = model.state_dict()
            known = {place(state[name]) for name in state.keys() - lacking.missing_keys}
            if lost := [n for n in lacking.missing_keys if place(state[n]) not in known] + lacking.unexpected_keys:
                raise ValueError(f"{', '.join(lost)} in one of weights and configuration alone")
        except Exception as error:
            reason = " ".join(str(error).split())  # some libraries' messages have several lines
            raise InputError(f"the checkpoint {folder} is damaged, or its files are not of one: {reason}") from error
        return model.eval()


def place(tensor: Tensor) -> tuple[int, torch.Size]:
    """Where a tensor lies: tied weights lie in one place."""
    return (tensor.data_ptr() if tensor.numel() else id(tensor)), tensor.shape


@torch.no_grad()
def smooth_token_embeddings(backbone: Backbone, rows: Int[Tensor, "n"]) -> None:
    """Gives neighbouring rows neighbouring embeddings: random curves of a few low frequencies."""
    at = torch.linspace(0, 1, len(rows))[:, None] * torch.arange(1, 9) * torch.pi
    basis = torch.cat([at.sin(), at.cos()], 1) / 8**0.5
    for weight in backbone.vocab_weights():
        weight[rows - backbone.vocab_size] = basis @ (torch.randn(basis.shape[1], weight.shape[1]) * weight.std())
