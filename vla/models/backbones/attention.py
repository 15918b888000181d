"""Attention from one sequence to another, for resamplers and cross-attention layers."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, cat, nn


class CrossAttention(nn.Module):
    """Multi-head cross-attention without biases.

    Args:
        key_heads: number of key-value heads; several query heads share one where it is less than `heads`.
        normalized: apply an RMS norm to queries and keys, per head.
    """

    def __init__(
        self,
        width: int,
        source_width: int,
        heads: int,
        head_width: int,
        key_heads: int | None = None,
        normalized: bool = False,
    ) -> None:
        super().__init__()
        self.heads, self.key_heads = heads, key_heads or heads
        self.to_q = nn.Linear(width, heads * head_width, bias=False)
        self.to_kv = nn.Linear(source_width, 2 * self.key_heads * head_width, bias=False)
        self.to_out = nn.Linear(heads * head_width, width, bias=False)
        self.q_norm = nn.RMSNorm(head_width, eps=1e-5) if normalized else nn.Identity()
        self.k_norm = nn.RMSNorm(head_width, eps=1e-5) if normalized else nn.Identity()

    def keys(self, source: Float[Tensor, "b s c"]) -> Float[Tensor, "b s w"]:
        """Keys and values, concatenated."""
        keys, values = self.to_kv(source).chunk(2, -1)
        return cat([self.k_norm(keys.unflatten(-1, (self.key_heads, -1))).flatten(-2), values], -1)

    def forward(
        self, x: Float[Tensor, "b l d"], keys: Float[Tensor, "b s w"], allowed: Bool[Tensor, "b l s"] | None = None
    ) -> Float[Tensor, "b l d"]:
        """Attention of x to `keys` where `allowed`; zeros for a token of x that may attend to nothing."""
        queries = self.q_norm(self.to_q(x).unflatten(-1, (self.heads, -1))).transpose(1, 2)
        key, value = keys.unflatten(-1, (2, self.key_heads, -1)).permute(2, 0, 3, 1, 4)
        shared = self.key_heads < self.heads
        if allowed is None:
            attended = F.scaled_dot_product_attention(queries, key, value, enable_gqa=shared)
            return self.to_out(attended.transpose(1, 2).flatten(2))
        # The softmax of a fully masked row is undefined: the mask is lifted there, and the result set to zero.
        blind = ~allowed.any(-1, keepdim=True)
        mask = (allowed | blind)[:, None]
        attended = F.scaled_dot_product_attention(queries, key, value, attn_mask=mask, enable_gqa=shared)
        return self.to_out(attended.transpose(1, 2).flatten(2)).masked_fill(blind, 0)


class SwiGLU(nn.Module):
    """Llama's feed-forward network, preceded by an RMS norm."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width, eps=1e-5)
        self.gate, self.up = nn.Linear(width, inner, bias=False), nn.Linear(width, inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        """The output of the network, without a residual."""
        normed = self.norm(x)
        return self.down(F.silu(self.gate(normed)) * self.up(normed))


def feed_forward(width: int) -> nn.Sequential:
    """Flamingo's feed-forward network: expansion by four, no biases."""
    return nn.Sequential(
        nn.LayerNorm(width),
        nn.Linear(width, 4 * width, bias=False),
        nn.GELU(),
        nn.Linear(4 * width, width, bias=False),
    )
