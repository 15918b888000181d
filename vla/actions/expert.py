"""The action expert: a small transformer whose layers also look at a backbone's cached keys and values."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vla.errors import InputError

MIN_PERIOD, MAX_PERIOD = 4e-3, 4.0
"""Of the waves that tell the time of a flow."""


class Expert(nn.Module):
    """`layers` pre-norm layers of width `width`, each with attention and a gated MLP (pi0).

    Layer i attends to the keys and values of the i-th pair of the prefix, and to its own: so it has the backbone's
    `kv_heads` and `head_dim`, and a number of heads of its own, a multiple of `kv_heads`. Positions go on where the
    prefix's valid tokens end, with the backbone's rotation, of base `rope_theta`.
    """

    def __init__(
        self,
        width: int,
        layers: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        mlp_size: int,
        adaptive: bool = False,
        rope_theta: float = 10000.0,
    ) -> None:
        super().__init__()
        if heads % kv_heads or head_dim % 2 or width % 2:
            raise InputError(
                f"heads must be a multiple of kv_heads, head_dim and width even: not {heads}, {kv_heads}, {head_dim} "
                f"and {width}"
            )
        self.width, self.adaptive = width, adaptive
        self.kv_heads, self.head_dim, self.rope_theta = kv_heads, head_dim, rope_theta
        self.layers = nn.ModuleList(
            ExpertLayer(width, heads, kv_heads, head_dim, mlp_size, adaptive) for _ in range(layers)
        )
        self.norm = AdaptiveNorm(width, adaptive)

    def forward(
        self,
        tokens: Float[Tensor, "b n w"],
        seen: Bool[Tensor, "b n"],
        blocks: Int[Tensor, "n"],
        prefix: Sequence[tuple[Float[Tensor, "b g m e"], Float[Tensor, "b g m e"]]],
        prefix_mask: Bool[Tensor, "b m"],
        condition: Float[Tensor, "b n w"] | None = None,
    ) -> Float[Tensor, "b n w"]:
        """A token looks at the prefix, and at the tokens that are `seen` of its own block and those before.

        Raises InputError when the prefix does not have the layers, heads and size of head that this was built for.
        """
        self._check(prefix)
        own = seen[:, None, :] & (blocks[None, :] <= blocks[:, None])
        own = own | torch.eye(len(blocks), dtype=torch.bool, device=own.device)  # looks at something, if at itself
        mask = torch.cat([prefix_mask[:, None, :].expand(-1, len(blocks), -1), own], -1)[:, None]
        positions = prefix_mask.sum(1, keepdim=True) + torch.arange(len(blocks), device=tokens.device)
        rotation = rotary(positions, self.head_dim, self.rope_theta)
        for layer, (keys, values) in zip(self.layers, prefix, strict=True):
            tokens = layer(tokens, keys, values, mask, rotation, condition)
        hidden, _ = self.norm(tokens, condition)
        return hidden

    def _check(self, prefix: Sequence[tuple[Tensor, Tensor]]) -> None:
        if len(prefix) != len(self.layers):
            raise InputError(f"the expert has {len(self.layers)} layers, the backbone gave {len(prefix)}")
        for keys, _ in prefix:
            if (keys.shape[1], keys.shape[3]) != (self.kv_heads, self.head_dim):
                raise InputError(
                    f"the expert reads {self.kv_heads} heads of {self.head_dim}, "
                    f"the backbone has {keys.shape[1]} of {keys.shape[3]}"
                )


class ExpertLayer(nn.Module):
    def __init__(self, width: int, heads: int, kv_heads: int, head_dim: int, mlp_size: int, adaptive: bool) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.query = nn.Linear(width, heads * head_dim, bias=False)
        self.key = nn.Linear(width, kv_heads * head_dim, bias=False)
        self.value = nn.Linear(width, kv_heads * head_dim, bias=False)
        self.out = nn.Linear(heads * head_dim, width, bias=False)
        self.gate, self.up = nn.Linear(width, mlp_size, bias=False), nn.Linear(width, mlp_size, bias=False)
        self.down = nn.Linear(mlp_size, width, bias=False)
        self.before_attention, self.before_mlp = AdaptiveNorm(width, adaptive), AdaptiveNorm(width, adaptive)

    def forward(
        self,
        tokens: Float[Tensor, "b n w"],
        keys: Float[Tensor, "b g m e"],
        values: Float[Tensor, "b g m e"],
        mask: Bool[Tensor, "b 1 n k"],
        rotation: tuple[Float[Tensor, "b 1 n e"], Float[Tensor, "b 1 n e"]],
        condition: Float[Tensor, "b n w"] | None,
    ) -> Float[Tensor, "b n w"]:
        x, gate = self.before_attention(tokens, condition)
        query, key, value = (
            linear(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for linear in (self.query, self.key, self.value)
        )
        key = torch.cat([keys.to(key.dtype), rotate(key, rotation)], 2)
        value = torch.cat([values.to(value.dtype), value], 2)
        attended = F.scaled_dot_product_attention(rotate(query, rotation), key, value, mask, enable_gqa=True)
        tokens = tokens + gate * self.out(attended.transpose(1, 2).flatten(2))
        x, gate = self.before_mlp(tokens, condition)
        return tokens + gate * self.down(F.gelu(self.gate(x), approximate="tanh") * self.up(x))


class AdaptiveNorm(nn.Module):
    """RMS norm; where adaptive, x (1 + scale) + shift with scale, shift and the branch's gate linear in a condition.

    All three start at 0 (pi0.5, after DiT's adaLN-Zero): each branch of a layer adds nothing yet.
    """

    def __init__(self, width: int, adaptive: bool) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width, eps=1e-6, elementwise_affine=not adaptive)
        self.modulation = nn.Linear(width, 3 * width) if adaptive else None
        if self.modulation is not None:
            nn.init.zeros_(self.modulation.weight)
            nn.init.zeros_(self.modulation.bias)

    def forward(
        self, x: Float[Tensor, "b n w"], condition: Float[Tensor, "b n w"] | None
    ) -> tuple[Float[Tensor, "b n w"], Float[Tensor, "b n w"] | float]:
        """The norm, and what to multiply the branch after it with."""
        # In the weights' precision: autocast leaves it to the tokens', and takes a slow path.
        normed = self.norm(x if self.norm.weight is None else x.to(self.norm.weight.dtype))
        if self.modulation is None or condition is None:
            return normed, 1.0
        scale, shift, gate = self.modulation(condition).chunk(3, -1)
        return normed * (1 + scale) + shift, gate


def time_features(time: Float[Tensor, "b"], width: int) -> Float[Tensor, "b w"]:
    """Sines and cosines of the time, of periods from `MIN_PERIOD` to `MAX_PERIOD` in a geometric row (pi0)."""
    fraction = torch.linspace(0, 1, width // 2, device=time.device, dtype=time.dtype)
    angles = time[:, None] * (2 * math.pi / (MIN_PERIOD * (MAX_PERIOD / MIN_PERIOD) ** fraction))
    return torch.cat([angles.sin(), angles.cos()], -1)


def rotary(
    positions: Int[Tensor, "b n"], head_dim: int, theta: float
) -> tuple[Float[Tensor, "b 1 n e"], Float[Tensor, "b 1 n e"]]:
    """Cosines and sines of Llama's rotation: pairs are the two halves of a head."""
    frequencies = theta ** (-torch.arange(0, head_dim, 2, device=positions.device) / head_dim)
    angles = (positions[:, None, :, None] * frequencies).repeat(1, 1, 1, 2)
    return angles.cos(), angles.sin()


def rotate(
    x: Float[Tensor, "b g n e"], rotation: tuple[Float[Tensor, "b 1 n e"], Float[Tensor, "b 1 n e"]]
) -> Float[Tensor, "b g n e"]:
    cos, sin = rotation
    first, second = x.chunk(2, -1)
    return (x * cos + torch.cat([-second, first], -1) * sin).to(x.dtype)
