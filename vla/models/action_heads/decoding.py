"""Decoding with a KV cache."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vla.models.backbone_inputs import DecoderInput
from vla.models.masks import TOGETHER

KeysValues = list[tuple[Float[Tensor, "b g m e"], Float[Tensor, "b g m e"]]]
"""Cached keys and values of each layer of a backbone."""


class Decoding:
    """A batch of sequences being decoded, with their KV cache; building one runs the prefill.

    `prompt` has the hidden states of the prompt's tokens.

    Args:
        segments: segment of each token of the prompt; None: all are shared.
    """

    def __init__(
        self,
        backbone: Any,
        embeds: Float[Tensor, "b l d"],
        mask: Bool[Tensor, "b l"],
        vision: Any,
        segments: Int[Tensor, "b l"] | None = None,
    ) -> None:
        self.backbone, self.mask, self._vision = backbone, mask, vision
        self.hidden, self.cache = backbone.forward(DecoderInput(embeds, mask, backbone.new_cache(), vision, segments))
        self.prompt = self.hidden

    def next_logits(self) -> Any:
        """Logits of the next token, (b, v). Index them by row: an engine computes only the selected rows."""
        return self.backbone.logits(self.hidden[:, -1])

    def extend(self, embeds: Float[Tensor, "b l d"], together: bool = False) -> Float[Tensor, "b l d"]:
        """Appends tokens and returns their hidden states; where `together`, the tokens attend to each other."""
        if self.prompt is self.hidden:  # an engine may overwrite it
            self.prompt = self.hidden.clone()
        self.mask = F.pad(self.mask, (0, embeds.shape[1]), value=True)
        blocks = torch.full(embeds.shape[:2], TOGETHER, device=embeds.device) if together else None
        inputs = DecoderInput(embeds, self.mask, self.cache, self._vision, blocks)
        self.hidden, self.cache = self.backbone.forward(inputs)
        return self.hidden

    def next_position(self) -> Int[Tensor, "b"]:
        """Position of the next token of each row."""
        position: Tensor = self.backbone.next_position(self.mask, self.cache)
        return position

    def rollback(self, count: int) -> None:
        """Removes the last `count` tokens from the cache."""
        if count:
            self.mask = self.mask[:, :-count]
            self.cache = self.backbone.crop(self.cache, self.mask.shape[1])


def keys_values(cache: Any) -> KeysValues:
    """Keys and values of each layer of a transformers cache; empty without a cache."""
    return [] if cache is None else [(layer.keys, layer.values) for layer in cache.layers]


def median_bins(logits: Float[Tensor, "*b n"]) -> Float[Tensor, "*b"]:
    """The median of each distribution over bins, as a fractional bin index.

    The median minimises the expected absolute error and is finer than a bin. Unlike the argmax it does not jump
    between bins that are almost equally likely. Between two modes it falls in the one with more probability.
    """
    total = logits.softmax(-1).cumsum(-1)
    at = (total < 0.5).sum(-1, keepdim=True).clamp(max=logits.shape[-1] - 1)
    upper = total.gather(-1, at)
    lower = torch.where(at > 0, total.gather(-1, (at - 1).clamp(min=0)), 0.0)
    return (at - 0.5 + (0.5 - lower) / (upper - lower).clamp(min=1e-9)).squeeze(-1)
