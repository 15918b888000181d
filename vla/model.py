"""The VLA: a backbone and an action-token head. Loss, text and action decoding.

Shapes: b rows, l tokens, d hidden size, v vocabulary rows; the last of v are action rows, one a bin, and the blank.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vla.errors import InputError
from vla.processor import IGNORE, Batch, Processor, point_features
from vla.scene import POINT_SCALE
from vla.vlm.composed import ComposedVLM

POINT_SMOOTHING = 1.0
"""The width of a coordinate's target, in percent of the image."""


class VLA(nn.Module):
    """A backbone whose vocabulary is extended by action rows, when the processor knows a robot.

    To each action token are added a learned embedding of its place (which step and component), since the rows are
    shared between components, and an MLP of the state, of the points that were said and, where the model drives
    several robots, of which one it is. Places are laid out for the widest robot; a narrower one leaves some unused.
    """

    widths: Int[Tensor, "r"]
    """Components of an action of each robot."""

    def __init__(self, backbone: ComposedVLM, processor: Processor, smoothing: float = 2.0) -> None:
        super().__init__()
        self.backbone, self.processor, self.smoothing = backbone, processor, smoothing
        self.text_vocab = processor.text_vocab
        if processor.has_points:
            self._soft_rows("points", torch.tensor(processor.points), POINT_SMOOTHING)
        if not processor.robots:
            return
        bins = processor.robots[0].bins.vocab_size
        if backbone.vocab_size == self.text_vocab:
            backbone.add_rows(bins + 1)
            smooth_rows(backbone, torch.arange(bins) + self.text_vocab)
        elif backbone.vocab_size != self.text_vocab + bins + 1:
            raise InputError(
                f"the backbone has {backbone.vocab_size} rows: not the tokenizer's {self.text_vocab}, "
                f"with or without {bins} action rows"
            )
        self._soft_rows("actions", torch.arange(bins) + self.text_vocab, smoothing)
        widths = torch.tensor([robot.width for robot in processor.robots])
        self.register_buffer("widths", widths, persistent=False)
        self.slots = nn.Embedding(processor.robots[0].horizon * int(widths.max()), backbone.hidden_size)
        nn.init.normal_(self.slots.weight, std=0.02)
        # Which robot it is, where there are several: the numbers of one mean nothing to another.
        self.told_robots = len(processor.robots) if len(processor.robots) > 1 else 0
        # Numbers enter as numbers, into every place where an action is asked for.
        self.situation = nn.Sequential(
            nn.Linear(processor.state_width + 3 * processor.points_width + self.told_robots, 2 * backbone.hidden_size),
            nn.GELU(),
            nn.Linear(2 * backbone.hidden_size, backbone.hidden_size),
        )

    def _soft_rows(self, name: str, rows: Int[Tensor, "n"], smoothing: float) -> None:
        """Rows that are values on a line: their targets are Gaussians, `smoothing` rows wide."""
        at = torch.arange(len(rows))
        kernel = torch.exp(-0.5 * ((at[:, None] - at[None]) / max(smoothing, 1e-6)) ** 2)
        self.register_buffer(f"{name}_rows", rows, persistent=False)
        self.register_buffer(f"{name}_kernel", kernel / kernel.sum(1, keepdim=True), persistent=False)

    def forward(
        self, batch: Batch, pixels: Float[Tensor, "b k 3 h w"] | None = None
    ) -> tuple[Float[Tensor, "n"], Int[Tensor, "n"]]:
        """Cross-entropy of each of the n labelled tokens, and the row that each belongs to.

        `pixels` stand for the batch's images (`Processor.pixels`), augmented for instance.

        The target of an action or a coordinate is a Gaussian over neighbouring rows (`smoothing` or `POINT_SMOOTHING`
        rows wide; plain for `smoothing` 0), that of a text token is one-hot; all are over all rows of the vocabulary.
        """
        embeds, vision = self._prefix(batch, pixels)
        hidden, _ = self.backbone.hidden(embeds, batch.attention_mask, vision=vision, segments=batch.segments)
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
        return losses, rows

    @torch.inference_mode()
    def generate_text(self, batch: Batch, max_tokens: int = 16) -> list[str]:
        """Greedy answers, up to `<eos>`; action rows cannot be chosen."""
        decoding = _Decoding(self, batch)
        done = torch.zeros(len(batch.input_ids), dtype=torch.bool)
        tokens: list[Tensor] = []
        for _ in range(max_tokens):
            token = decoding.next_logits()[:, : self.text_vocab].argmax(-1)
            token = torch.where(done, self.processor.eos, token)
            tokens.append(token)
            done |= token == self.processor.eos
            if done.all():
                break
            decoding.extend(self.backbone.embed_tokens(token[:, None]))
        rows = torch.stack(tokens, 1).tolist()
        return [self.processor.text(r[: r.index(self.processor.eos)] if self.processor.eos in r else r) for r in rows]

    @torch.inference_mode()
    def generate_actions(
        self, batch: Batch, given: Int[np.ndarray, "b k"] | None = None
    ) -> tuple[Float[np.ndarray, "b n"], Float[np.ndarray, "b p 2"]]:
        """The bin of each action token, as a fraction, and the points that were said before: fractions of the image,
        below 0 for one not in it.

        Points are greedy, one coordinate after the other; actions come from one pass, the first k tokens `given`.
        All rows are of one robot (`Processor.robot_prompt`).
        """
        processor = self.processor
        if not processor.robots:
            raise InputError("this model has no action head: train it on demonstrations first")
        if len(numbers := set(batch.robot.tolist())) != 1 or -1 in numbers:
            raise InputError("actions are decoded for rows of one robot at a time")
        robot = processor.robots[numbers.pop()]
        decoding = _Decoding(self, batch)
        # The coordinates, and `<eos>` for what is not in the image.
        sayable = torch.tensor([*processor.points, processor.eos] if robot.points else [])
        values: list[Tensor] = []
        for _ in range(robot.point_tokens):
            values.append(decoding.next_logits()[:, sayable].argmax(-1))
            decoding.extend(self.backbone.embed_tokens(sayable[values[-1]][:, None]))
        said = torch.stack(values, 1).float() if values else torch.zeros(len(batch.input_ids), 0)
        points = said.unflatten(1, (-1, 2))
        points = torch.where((points < POINT_SCALE).all(-1, keepdim=True), points, -1)
        unsaid = processor.points_width - robot.points
        ids = torch.full((len(batch.input_ids), robot.action_tokens), processor.blank)
        if given is not None:
            ids[:, : given.shape[1]] = torch.from_numpy(given)
        situation = self._situation(batch, point_features(F.pad(points, (0, 0, 0, unsaid), value=-1)))
        order = torch.arange(robot.action_tokens).expand_as(ids)
        hidden = decoding.extend(self.backbone.embed_tokens(ids) + self.slots(self._places(order, batch)) + situation)
        bins = median_bins(self.backbone.logits(hidden)[..., self.text_vocab : processor.blank].float())
        return bins.numpy(), ((points + 0.5) / POINT_SCALE).numpy()

    def _situation(self, batch: Batch, points: Float[Tensor, "b p 3"]) -> Float[Tensor, "b 1 d"]:
        """What each robot is told at all its action tokens."""
        numbers = [batch.state, points.flatten(1)]
        if self.told_robots:
            numbers.append(F.one_hot(batch.robot.clamp(min=0), self.told_robots).to(points.dtype))
        told: Tensor = self.situation(torch.cat(numbers, 1))
        return told[:, None]

    def _places(self, order: Int[Tensor, "b n"], batch: Batch) -> Int[Tensor, "b n"]:
        """The slot of each row's action tokens, numbered through: its step's, and in that its component's."""
        width = self.widths[batch.robot.clamp(min=0), None]
        return order // width * self.widths.max() + order % width

    def _prefix(
        self, batch: Batch, pixels: Float[Tensor, "b k 3 h w"] | None = None
    ) -> tuple[Float[Tensor, "b l d"], Any]:
        """The embeddings of a batch's tokens, and what the backbone saw."""
        pixels = self.processor.pixels(batch.images) if pixels is None else pixels
        vision = self.backbone.see(pixels, batch.image_mask)
        embeds = self.backbone.embed(batch.input_ids, vision)
        action = batch.input_ids >= self.text_vocab
        if not action.any():
            return embeds, vision
        rows, columns = torch.nonzero(action, as_tuple=True)
        places = self._places(action.long().cumsum(1) - 1, batch)[rows, columns]
        chosen = self.slots(places) + self._situation(batch, batch.points)[rows, 0]
        return embeds.index_put((rows, columns), chosen.to(embeds.dtype), accumulate=True), vision

    def save(self, folder: Path) -> None:
        """Weights (safetensors), configuration and processor into `folder`, which must exist."""
        config = {"backbone": self.backbone.config, "smoothing": self.smoothing}
        (folder / "config.json").write_text(json.dumps(config, indent=1))
        self.processor.save(folder)
        save_file({k: v.contiguous() for k, v in self.state_dict().items()}, folder / "model.safetensors")

    @classmethod
    def load(cls, folder: Path) -> VLA:
        """Raises InputError when `folder` is no checkpoint or its files do not belong together."""
        folder = Path(folder)
        for name in ("config.json", "model.safetensors", "processor.json", "tokenizer.json"):
            if not (folder / name).exists():
                raise InputError(f"{folder} is not a checkpoint: {name} is missing")
        try:
            config = json.loads((folder / "config.json").read_text())
            model = cls(ComposedVLM(**config["backbone"]), Processor.load(folder), config["smoothing"])
            weights = load_file(folder / "model.safetensors")
            model.load_state_dict({k: v.float() for k, v in weights.items()})
        except Exception as error:
            raise InputError(f"the checkpoint {folder} is damaged, or its files are not of one: {error}") from error
        return model.eval()


class _Decoding:
    """Rows under way, with a cache of what they hold."""

    def __init__(self, model: VLA, batch: Batch) -> None:
        self._backbone, self._cache = model.backbone, model.backbone.new_cache()
        self._mask = batch.attention_mask
        embeds, self._vision = model._prefix(batch)
        self._hidden, self._cache = self._backbone.hidden(embeds, self._mask, self._cache, self._vision)

    def next_logits(self) -> Float[Tensor, "b v"]:
        return self._backbone.logits(self._hidden[:, -1])

    def extend(self, embeds: Float[Tensor, "b l d"]) -> Float[Tensor, "b l d"]:
        """The hidden states of further tokens."""
        self._mask = F.pad(self._mask, (0, embeds.shape[1]), value=True)
        self._hidden, self._cache = self._backbone.hidden(embeds, self._mask, self._cache, self._vision)
        return self._hidden


def median_bins(logits: Float[Tensor, "*b n"]) -> Float[Tensor, "*b"]:
    """The median of each distribution over bins, as a fraction of a bin.

    It has the least expected absolute error, is finer than a bin, and does not jump between bins that are almost
    equally likely as the likeliest one does; between two modes it takes the heavier.
    """
    total = logits.softmax(-1).cumsum(-1)
    at = (total < 0.5).sum(-1, keepdim=True).clamp(max=logits.shape[-1] - 1)
    upper = total.gather(-1, at)
    lower = torch.where(at > 0, total.gather(-1, (at - 1).clamp(min=0)), 0.0)
    return (at - 0.5 + (0.5 - lower) / (upper - lower).clamp(min=1e-9)).squeeze(-1)


@torch.no_grad()
def smooth_rows(backbone: ComposedVLM, rows: Int[Tensor, "n"]) -> None:
    """Gives neighbouring rows neighbouring embeddings: random curves of a few low frequencies."""
    at = torch.linspace(0, 1, len(rows))[:, None] * torch.arange(1, 9) * torch.pi
    basis = torch.cat([at.sin(), at.cos()], 1) / 8**0.5
    embedding: Any = backbone.language.get_input_embeddings()
    head: Any = backbone.language.get_output_embeddings()
    for weight in (embedding.weight, head.weight):
        weight[rows] = basis @ (torch.randn(basis.shape[1], weight.shape[1]) * weight.std())
