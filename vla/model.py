"""The VLA: a backbone and an action-token head. Loss, text and action decoding.

Shapes: b rows, l tokens, d hidden size, v vocabulary rows; action rows are the last `bins` of v.
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
from vla.processor import IGNORE, Batch, Processor
from vla.vlm.composed import ComposedVLM


class VLA(nn.Module):
    """A backbone whose vocabulary is extended by action rows, when the processor knows a robot.

    A learned embedding per slot (which state component; which action step and component) is added to
    state and action tokens, because the rows are shared between components.
    """

    def __init__(self, backbone: ComposedVLM, processor: Processor, smoothing: float = 1.0) -> None:
        super().__init__()
        self.backbone, self.processor, self.smoothing = backbone, processor, smoothing
        self.text_vocab = processor.text_vocab
        if processor.has_points:
            self._soft_rows("points", torch.tensor(processor.points))
        robot = processor.robot
        if robot is None:
            return
        if backbone.vocab_size == self.text_vocab:
            backbone.add_rows(robot.bins.vocab_size)
            smooth_rows(backbone, torch.arange(robot.bins.vocab_size) + self.text_vocab)
        elif backbone.vocab_size != self.text_vocab + robot.bins.vocab_size:
            raise InputError(
                f"the backbone has {backbone.vocab_size} rows: not the tokenizer's {self.text_vocab}, "
                f"with or without {robot.bins.vocab_size} action rows"
            )
        self._soft_rows("actions", torch.arange(robot.bins.vocab_size) + self.text_vocab)
        self.slots = nn.Embedding(robot.state_tokens + robot.action_tokens, backbone.hidden_size)
        nn.init.normal_(self.slots.weight, std=0.02)

    def _soft_rows(self, name: str, rows: Int[Tensor, "n"]) -> None:
        """Rows that are values on a line: their targets are Gaussians, `smoothing` rows wide."""
        at = torch.arange(len(rows))
        kernel = torch.exp(-0.5 * ((at[:, None] - at[None]) / max(self.smoothing, 1e-6)) ** 2)
        self.register_buffer(f"{name}_rows", rows, persistent=False)
        self.register_buffer(f"{name}_kernel", kernel / kernel.sum(1, keepdim=True), persistent=False)

    def forward(self, batch: Batch) -> tuple[Float[Tensor, "n"], Int[Tensor, "n"]]:
        """Cross-entropy of each of the n labelled tokens, and the row that each belongs to.

        The target of an action or a coordinate is a Gaussian over neighbouring rows (`smoothing` rows wide),
        that of a text token is one-hot; all are over all rows of the vocabulary.
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
        hidden, cache, mask = self._prefill(batch)
        done = torch.zeros(len(hidden), dtype=torch.bool)
        tokens: list[Tensor] = []
        for _ in range(max_tokens):
            token = self.backbone.logits(hidden[:, -1])[:, : self.text_vocab].argmax(-1)
            token = torch.where(done, self.processor.eos, token)
            tokens.append(token)
            done |= token == self.processor.eos
            if done.all():
                break
            mask = F.pad(mask, (0, 1), value=True)
            embeds = self.backbone.language.get_input_embeddings()(token[:, None])
            hidden, cache = self.backbone.hidden(embeds, mask, cache)
        rows = torch.stack(tokens, 1).tolist()
        return [self.processor.text(r[: r.index(self.processor.eos)] if self.processor.eos in r else r) for r in rows]

    @torch.inference_mode()
    def generate_actions(self, batch: Batch, forced: int = 0) -> Int[np.ndarray, "b n"]:
        """Greedy action tokens; only action rows can be chosen. The last `forced` prompt tokens are the first."""
        robot = self.processor.robot
        if robot is None:
            raise InputError("this model has no action head: train it on demonstrations first")
        hidden, cache, mask = self._prefill(batch)
        tokens = [batch.input_ids[:, i - forced] for i in range(forced)]
        while len(tokens) < robot.action_tokens:
            token = self.backbone.logits(hidden[:, -1])[:, self.text_vocab :].argmax(-1) + self.text_vocab
            tokens.append(token)
            if len(tokens) == robot.action_tokens:
                break
            mask = F.pad(mask, (0, 1), value=True)
            slot = self.slots.weight[robot.state_tokens + len(tokens) - 1]
            embeds = self.backbone.language.get_input_embeddings()(token[:, None]) + slot
            hidden, cache = self.backbone.hidden(embeds, mask, cache)
        return torch.stack(tokens, 1).numpy()

    def _prefill(self, batch: Batch) -> tuple[Tensor, Any, Tensor]:
        hidden, cache = self.backbone.hidden(self._embed(batch), batch.attention_mask, self.backbone.new_cache())
        return hidden, cache, batch.attention_mask

    def _embed(self, batch: Batch) -> Float[Tensor, "b l d"]:
        embeds = self.backbone.embed(batch.input_ids, batch.pixel_values, batch.image_mask)
        action = batch.input_ids >= self.text_vocab
        if not action.any():
            return embeds
        slot = (action.long().cumsum(1) - 1).clamp(min=0)
        return embeds + torch.where(action.unsqueeze(-1), self.slots(slot), 0)

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


@torch.no_grad()
def smooth_rows(backbone: ComposedVLM, rows: Int[Tensor, "n"]) -> None:
    """Gives neighbouring rows neighbouring embeddings: random curves of a few low frequencies."""
    at = torch.linspace(0, 1, len(rows))[:, None] * torch.arange(1, 9) * torch.pi
    basis = torch.cat([at.sin(), at.cos()], 1) / 8**0.5
    embedding: Any = backbone.language.get_input_embeddings()
    head: Any = backbone.language.get_output_embeddings()
    for weight in (embedding.weight, head.weight):
        weight[rows] = basis @ (torch.randn(basis.shape[1], weight.shape[1]) * weight.std())
