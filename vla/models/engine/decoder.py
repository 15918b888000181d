"""The language model of a backbone with fused weights and a static cache.

Shapes as in `vla.models.engine.layers`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vla.models.engine.cache import StaticCache
from vla.models.engine.layers import FusedLayer, Rotation, Sizes, dtype_of, fused, grouped, quantize, rms_norm, signed

DECODERS = ("LlamaModel", "MistralModel", "Qwen2Model", "GemmaModel")
"""Decoders of transformers that consist only of pre-norm layers with rotary positions and a gated MLP."""
ROTATIONS = ("default", "linear", "llama3")
"""Rotations whose frequencies do not depend on the length."""
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu_pytorch_tanh": partial(F.gelu, approximate="tanh"),
}
INITIAL_POSITIONS = 4096
"""Initial size of the table of rotations; it grows for longer rows."""


class FusedDecoder(nn.Module):
    """A decoder that `can_fuse`, with fused copies of its weights in `precision`; the final norm is not fused."""

    scale: Float[Tensor, "d"]
    """Scale of the final norm."""
    cos: Float[Tensor, "p e"]
    sin: Float[Tensor, "p e"]

    def __init__(self, decoder: Any, precision: str = "float32") -> None:
        super().__init__()
        config, attention = decoder.config, decoder.layers[0].self_attn
        self.dtype, size = dtype_of(precision), attention.head_dim
        self.sizes = Sizes(
            config.num_attention_heads, config.num_key_value_heads, size, config.rms_norm_eps, attention.scaling
        )
        activation = ACTIVATIONS[config.hidden_act]
        self.layers = nn.ModuleList(_layer(layer, self.sizes, activation, self.dtype) for layer in decoder.layers)
        if precision in ("int8", "fp8"):
            quantize(self.layers, precision)
        self.register_buffer("scale", _scale(decoder.norm).to(self.dtype), persistent=False)
        self._rotary = [decoder.rotary_emb]  # in a list, so that it is not registered as a submodule
        self._tabulate_rotations(INITIAL_POSITIONS)

    def _tabulate_rotations(self, count: int) -> None:
        positions = torch.arange(count, device=self.scale.device)[None]
        cos, sin = self._rotary[0](torch.zeros(1, device=positions.device), positions)
        for name, value in zip(("cos", "sin"), signed(cos, sin, self.dtype), strict=True):
            self.register_buffer(name, value[0].detach(), persistent=False)

    def new_cache(self, rows: int, capacity: int) -> StaticCache:
        """An empty cache for this decoder."""
        return StaticCache(len(self.layers), rows, capacity, self.sizes, self.dtype, self.cos.device)

    def rotation(self, positions: Int[Tensor, "b n"] | slice) -> Rotation:
        """The rotation at `positions`; a slice where all rows have the same."""
        cos, sin = self.cos[positions], self.sin[positions]
        return (cos, sin) if isinstance(positions, slice) else (cos[:, None], sin[:, None])

    def forward(
        self,
        embeds: Float[Tensor, "b n d"],
        positions: Int[Tensor, "b n"] | slice,
        mask: Bool[Tensor, "b m"] | None,
        cache: StaticCache,
        first: int,
        bidirectional: bool = False,
    ) -> Float[Tensor, "b n d"]:
        """Hidden states of n new tokens, whose keys and values are written into `cache`.

        Args:
            mask: valid tokens; None where no row is padded.
            first: number of tokens that are already in the cache.
            bidirectional: the new tokens attend to each other, else attention is causal.
        """
        count = embeds.shape[1]
        x, rotation = embeds.to(self.dtype), self.rotation(positions)
        allowed = _allowed(mask, count, first + count, bidirectional, embeds.device)
        attention = None if allowed is None else grouped(allowed.expand(len(embeds), -1, -1), self.sizes.shared)
        for layer, cached in zip(self.layers, cache.views(first + count), strict=True):
            x = layer(x, cached, rotation, attention)
        return rms_norm(x, self.sizes.eps) * self.scale

    def fits(self, length: int) -> bool:
        """Whether the table of rotations covers `length` positions; extends it otherwise."""
        if enough := length < len(self.cos):
            return enough
        self._tabulate_rotations(2 * length)
        return False


def can_fuse(decoder: Any) -> bool:
    """Whether a decoder is one of `DECODERS` with plain linear layers (no adapters) and full attention."""
    if type(decoder).__name__ not in DECODERS:
        return False
    config = decoder.config
    sliding = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    kind = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    linears = (m for layer in decoder.layers for block in (layer.self_attn, layer.mlp) for m in block.children())
    plain = all(type(m) is nn.Linear or not list(m.parameters()) for m in linears)
    return plain and sliding is None and kind in ROTATIONS and config.hidden_act in ACTIVATIONS


def _layer(layer: Any, sizes: Sizes, activation: Any, dtype: torch.dtype) -> FusedLayer:
    attention, mlp = layer.self_attn, layer.mlp
    return FusedLayer(
        sizes,
        fused([attention.q_proj, attention.k_proj, attention.v_proj], _scale(layer.input_layernorm), dtype),
        fused([attention.o_proj], dtype=dtype),
        fused([mlp.gate_proj, mlp.up_proj], _scale(layer.post_attention_layernorm), dtype),
        fused([mlp.down_proj], dtype=dtype),
        activation,
    )


def _scale(norm: Any) -> Float[Tensor, "d"]:
    """The scale of a norm; Gemma stores its difference from 1."""
    weight: Tensor = norm.weight.detach().float()
    return weight + 1 if type(norm).__name__.startswith("Gemma") else weight


def _allowed(
    mask: Bool[Tensor, "b m"] | None, count: int, length: int, bidirectional: bool, device: torch.device
) -> Bool[Tensor, "c n m"] | None:
    """Attention mask of the last `count` of `length` tokens; None where nothing is masked."""
    allowed = torch.ones(count, length, dtype=torch.bool, device=device).tril(length - count)[None]
    if mask is None:
        return None if bidirectional or count == 1 else allowed
    if bidirectional:
        allowed = torch.ones_like(allowed)
    # A padding token attends to itself: the softmax of a fully masked row is undefined.
    itself = torch.eye(count, length, dtype=torch.bool, device=device).roll(length - count, 1)
    return (allowed & mask[:, None]) | itself
