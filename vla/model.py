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
    shared between components, and an MLP of the state and of the points that were said.
    """

    def __init__(self, backbone: ComposedVLM, processor: Processor, smoothing: float = 2.0) -> None:
        super().__init__()
        self.backbone, self.processor, self.smoothing = backbone, processor, smoothing
        self.text_vocab = processor.text_vocab
        if processor.has_points:
            self._soft_rows("points", torch.tensor(processor.points), POINT_SMOOTHING)
        robot = processor.robot
        if robot is None:
            return
        if backbone.vocab_size == self.text_vocab:
            backbone.add_rows(robot.bins.vocab_size + 1)
            smooth_rows(backbone, torch.arange(robot.bins.vocab_size) + self.text_vocab)
        elif backbone.vocab_size != self.text_vocab + robot.bins.vocab_size + 1:
            raise InputError(
                f"the backbone has {backbone.vocab_size} rows: not the tokenizer's {self.text_vocab}, "
                f"with or without {robot.bins.vocab_size} action rows"
            )
        self._soft_rows("actions", torch.arange(robot.bins.vocab_size) + self.text_vocab, smoothing)
        self.slots = nn.Embedding(robot.action_tokens, backbone.hidden_size)
        nn.init.normal_(self.slots.weight, std=0.02)
        # Numbers enter as numbers, into every place where an action is asked for.
        self.situation = nn.Sequential(
            nn.Linear(len(robot.embodiment.state) + 3 * robot.points, 2 * backbone.hidden_size),
            nn.GELU(),
            nn.Linear(2 * backbone.hidden_size, backbone.hidden_size),
        )

    def _soft_rows(self, name: str, rows: Int[Tensor, "n"], smoothing: float) -> None:
        """Rows that are values on a line: their targets are Gaussians, `smoothing` rows wide."""
        at = torch.arange(len(rows))
        kernel = torch.exp(-0.5 * ((at[:, None] - at[None]) / max(smoothing, 1e-6)) ** 2)
        self.register_buffer(f"{name}_rows", rows, persistent=False)
        self.register_buffer(f"{name}_kernel", kernel / kernel.sum(1, keepdim=True), persistent=False)

    def forward(self, batch: Batch) -> tuple[Float[Tensor, "n"], Int[Tensor, "n"]]:
        """Cross-entropy of each of the n labelled tokens, and the row that each belongs to.

        The target of an action or a coordinate is a Gaussian over neighbouring rows (`smoothing` or `POINT_SMOOTHING`
        rows wide; plain for `smoothing` 0), that of a text token is one-hot; all are over all rows of the vocabulary.
        """
        embeds = self._embed(batch)
        hidden, _ = self.backbone.hidden(embeds, batch.attention_mask, segments=batch.segments)
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
            decoding.extend(self._embed_tokens(token[:, None]))
        rows = torch.stack(tokens, 1).tolist()
        return [self.processor.text(r[: r.index(self.processor.eos)] if self.processor.eos in r else r) for r in rows]

    @torch.inference_mode()
    def generate_actions(
        self, batch: Batch, given: Int[np.ndarray, "b k"] | None = None
    ) -> tuple[Float[np.ndarray, "b n"], Float[np.ndarray, "b p 2"]]:
        """The bin of each action token, as a fraction, and the points that were said before: fractions of the image,
        below 0 for one not in it.

        Points are greedy, one coordinate after the other; actions come from one pass, the first k tokens `given`.
        """
        robot, processor = self.processor.robot, self.processor
        if robot is None:
            raise InputError("this model has no action head: train it on demonstrations first")
        decoding = _Decoding(self, batch)
        # The coordinates, and `<eos>` for what is not in the image.
        sayable = torch.tensor([*processor.points, processor.eos] if robot.points else [])
        values: list[Tensor] = []
        for _ in range(robot.point_tokens):
            values.append(decoding.next_logits()[:, sayable].argmax(-1))
            decoding.extend(self._embed_tokens(sayable[values[-1]][:, None]))
        said = torch.stack(values, 1).float() if values else torch.zeros(len(batch.input_ids), 0)
        points = said.unflatten(1, (-1, 2))
        points = torch.where((points < POINT_SCALE).all(-1, keepdim=True), points, -1)
        ids = torch.full((len(batch.input_ids), robot.action_tokens), processor.blank)
        if given is not None:
            ids[:, : given.shape[1]] = torch.from_numpy(given)
        hidden = decoding.extend(self._embed_tokens(ids) + self._places(batch.state, point_features(points)))
        bins = median_bins(self.backbone.logits(hidden)[..., self.text_vocab : processor.blank].float())
        return bins.numpy(), ((points + 0.5) / POINT_SCALE).numpy()

    def _places(self, state: Float[Tensor, "b s"], points: Float[Tensor, "b p 3"]) -> Float[Tensor, "b n d"]:
        """What is added to the embedding of each action token: which one it is, and the robot's situation."""
        situation: Tensor = self.situation(torch.cat([state, points.flatten(1)], 1))
        return self.slots.weight + situation[:, None]

    def _embed_tokens(self, ids: Int[Tensor, "b l"]) -> Float[Tensor, "b l d"]:
        embeds: Tensor = self.backbone.language.get_input_embeddings()(ids)
        return embeds

    def _embed(self, batch: Batch) -> Float[Tensor, "b l d"]:
        embeds = self.backbone.embed(batch.input_ids, batch.pixel_values, batch.image_mask)
        action = batch.input_ids >= self.text_vocab
        if not action.any():
            return embeds
        places = self._places(batch.state, batch.points)
        index = (action.long().cumsum(1) - 1).clamp(min=0)
        chosen = places.gather(1, index.unsqueeze(-1).expand(*index.shape, places.shape[-1]))
        return embeds + torch.where(action.unsqueeze(-1), chosen, 0)

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
        self._hidden, self._cache = self._backbone.hidden(model._embed(batch), self._mask, self._cache)

    def next_logits(self) -> Float[Tensor, "b v"]:
        return self._backbone.logits(self._hidden[:, -1])

    def extend(self, embeds: Float[Tensor, "b l d"]) -> Float[Tensor, "b l d"]:
        """The hidden states of further tokens."""
        self._mask = F.pad(self._mask, (0, embeds.shape[1]), value=True)
        self._hidden, self._cache = self._backbone.hidden(embeds, self._mask, self._cache)
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
