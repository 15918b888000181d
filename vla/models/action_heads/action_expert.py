"""The action expert: a small transformer whose layers also attend to a backbone's KV cache."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers.activations import ACT2FN

from vla.errors import InputError
from vla.models.action_heads.decoding import KeysValues

MIN_PERIOD, MAX_PERIOD = 4e-3, 4.0
"""Shortest and longest period of the sinusoidal embedding of the flow time."""


def frequencies(head_dim: int, theta: float = 10000.0) -> tuple[float, ...]:
    """Rotary frequencies of Llama for the base `theta`."""
    return tuple(theta ** (-i / head_dim) for i in range(0, head_dim, 2))


@dataclass(frozen=True)
class ActionExpertShape:
    """Sizes of an action expert.

    `layers`, `kv_heads`, `head_dim` and the rotation must match the decoder whose keys and values the expert reads.

    Args:
        frequencies: rotary frequencies, one per rotated pair of a head's components; fewer than `head_dim` / 2 where
            only a part of each head is rotated.
        scaling: factor of the rotation's cosines and sines.
        activation: name of an activation in transformers.
        cross: every second layer is a cross-attention layer: it attends only to the context, through its own key and
            value projections (SmolVLA, Shukor et al. 2025, arXiv 2506.01844, sec. 3.1).

    Raises:
        InputError: for sizes that are inconsistent.
    """

    width: int
    mlp_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    frequencies: Sequence[float]
    scaling: float = 1.0
    activation: str = "gelu_pytorch_tanh"
    eps: float = 1e-6
    cross: bool = False

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads or self.head_dim % 2 or self.width % 2:
            raise InputError(
                f"heads must be a multiple of kv_heads, head_dim and width even: not {self.heads}, {self.kv_heads}, "
                f"{self.head_dim} and {self.width}"
            )


@dataclass(frozen=True)
class ExpertContext:
    """What an action expert reads besides the noisy actions.

    Attributes:
        keys_values: the prompt's keys and values in each layer of the backbone; keys are already rotated by position.
        mask: the valid tokens of the prompt.
        start: position of the expert's first token.
        state: conditioning values, in an expert whose first token they form.
    """

    keys_values: KeysValues
    mask: Bool[Tensor, "b m"]
    start: Int[Tensor, "b"]
    state: Float[Tensor, "b s"] | None = None

    def map(self, convert: Callable[[Tensor], Tensor]) -> ExpertContext:
        """The context with each tensor converted."""
        keys_values = [(convert(keys), convert(values)) for keys, values in self.keys_values]
        state = None if self.state is None else convert(self.state)
        return ExpertContext(keys_values, convert(self.mask), convert(self.start), state)


class ActionExpert(nn.Module):
    """Pre-norm transformer layers with attention and a gated MLP (pi0).

    Layer i attends to the context's keys and values of backbone layer i and to those of the expert's own tokens. The
    expert's positions continue after the context, with the backbone's rotary frequencies.
    """

    def __init__(self, shape: ActionExpertShape, adaptive: bool = False) -> None:
        super().__init__()
        self.shape, self.adaptive = shape, adaptive
        self.width, self.kv_heads, self.head_dim = shape.width, shape.kv_heads, shape.head_dim
        self._frequencies = torch.tensor(tuple(shape.frequencies))  # not a buffer: half precision would round it
        self.layers = nn.ModuleList(
            ActionExpertLayer(shape, adaptive, shape.cross and i % 2 == 1) for i in range(shape.layers)
        )
        self.norm = AdaptiveNorm(shape.width, adaptive, shape.eps)

    def forward(
        self,
        tokens: Float[Tensor, "b n w"],
        visible: Bool[Tensor, "b n"],
        blocks: Int[Tensor, "n"],
        context: ExpertContext,
        condition: Float[Tensor, "b n w"] | None = None,
    ) -> Float[Tensor, "b n w"]:
        """Hidden states of the expert's tokens, which attend to the context and block-causally to each other.

        Args:
            visible: tokens that may be attended to.
            blocks: block index of each token. A token attends to its own block and to earlier blocks.
            condition: input of the adaptive norms, per token.

        Raises:
            InputError: when the context does not have the layers, heads and head size that the expert was built for.
        """
        self._check(context.keys_values)
        own = visible[:, None, :] & (blocks[None, :] <= blocks[:, None])
        # A token always attends to itself, so that no row of the mask is empty.
        own = own | torch.eye(len(blocks), dtype=torch.bool, device=own.device)
        mask = torch.cat([context.mask[:, None, :].expand(-1, len(blocks), -1), own], -1)[:, None]
        order = torch.arange(len(blocks), device=tokens.device).expand(len(tokens), -1)
        joint = self.rotation(context.start[:, None] + order)
        # Cross-attention layers count positions from 0, as in SmolVLA.
        alone = self.rotation(order) if self.shape.cross else joint
        for layer, (keys, values) in zip(self.layers, context.keys_values, strict=True):
            tokens = layer(tokens, keys, values, mask, alone if layer.cross else joint, condition)
        hidden, _ = self.norm(tokens, condition)
        return hidden

    def rotation(self, positions: Int[Tensor, "b n"]) -> tuple[Float[Tensor, "b 1 n e"], Float[Tensor, "b 1 n e"]]:
        """Cosines and sines of the rotary embedding at `positions`, scaled."""
        self._frequencies = self._frequencies.to(positions.device)
        cos, sin = rotary(positions, self._frequencies)
        return cos * self.shape.scaling, sin * self.shape.scaling

    def _check(self, keys_values: KeysValues) -> None:
        if len(keys_values) != len(self.layers):
            raise InputError(f"the expert has {len(self.layers)} layers, the backbone gave {len(keys_values)}")
        for keys, _ in keys_values:
            if (keys.shape[1], keys.shape[3]) != (self.kv_heads, self.head_dim):
                raise InputError(
                    f"the expert reads {self.kv_heads} heads of {self.head_dim}, "
                    f"the backbone has {keys.shape[1]} of {keys.shape[3]}"
                )


class ActionExpertLayer(nn.Module):
    """One layer of the expert; where `cross`, it attends only to the context, through its own projections."""

    def __init__(self, shape: ActionExpertShape, adaptive: bool, cross: bool = False) -> None:
        super().__init__()
        self.head_dim, self.cross = shape.head_dim, cross
        width, kv_width = shape.width, shape.kv_heads * shape.head_dim
        self.query = nn.Linear(width, shape.heads * shape.head_dim, bias=False)
        self.key = nn.Linear(kv_width if cross else width, kv_width, bias=False)
        self.value = nn.Linear(kv_width if cross else width, kv_width, bias=False)
        self.out = nn.Linear(shape.heads * shape.head_dim, width, bias=False)
        self.gate, self.up = nn.Linear(width, shape.mlp_size, bias=False), nn.Linear(width, shape.mlp_size, bias=False)
        self.down = nn.Linear(shape.mlp_size, width, bias=False)
        self.activation = ACT2FN[shape.activation]
        self.before_attention = AdaptiveNorm(width, adaptive, shape.eps)
        self.before_mlp = AdaptiveNorm(width, adaptive, shape.eps)

    def forward(
        self,
        tokens: Float[Tensor, "b n w"],
        keys: Float[Tensor, "b g m e"],
        values: Float[Tensor, "b g m e"],
        mask: Bool[Tensor, "b 1 n k"],
        rotation: tuple[Float[Tensor, "b 1 n r"], Float[Tensor, "b 1 n r"]],
        condition: Float[Tensor, "b n w"] | None,
    ) -> Float[Tensor, "b n w"]:
        """Hidden states after this layer; `keys` and `values` are those of the context."""
        x, gate = self.before_attention(tokens, condition)
        query, dtype = self._heads(self.query(x)), self.key.weight.dtype
        if self.cross:
            count = keys.shape[2]
            keys, values = (cached.transpose(1, 2).flatten(2).to(dtype) for cached in (keys, values))
            key, value, mask = self._heads(self.key(keys)), self._heads(self.value(values)), mask[..., :count]
        else:
            key, value = self._heads(self.key(x)), self._heads(self.value(x))
            key = torch.cat([keys.to(key.dtype), rotate(key, rotation)], 2)
            value = torch.cat([values.to(value.dtype), value], 2)
        attended = F.scaled_dot_product_attention(rotate(query, rotation), key, value, mask, enable_gqa=True)
        tokens = tokens + gate * self.out(attended.transpose(1, 2).flatten(2))
        x, gate = self.before_mlp(tokens, condition)
        return tokens + gate * self.down(self.activation(self.gate(x)) * self.up(x))

    def _heads(self, x: Float[Tensor, "b n he"]) -> Float[Tensor, "b h n e"]:
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


class AdaptiveNorm(nn.Module):
    """RMS norm; where `adaptive`, x (1 + scale) + shift, with scale, shift and a gate linear in a condition.

    All three start at 0, so that each branch of a layer initially adds nothing (pi0.5, after DiT's adaLN-Zero).
    """

    def __init__(self, width: int, adaptive: bool, eps: float = 1e-6) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width, eps=eps, elementwise_affine=not adaptive)
        self.modulation = nn.Linear(width, 3 * width) if adaptive else None
        if self.modulation is not None:
            nn.init.zeros_(self.modulation.weight)
            nn.init.zeros_(self.modulation.bias)

    def forward(
        self, x: Float[Tensor, "b n w"], condition: Float[Tensor, "b n w"] | None
    ) -> tuple[Float[Tensor, "b n w"], Float[Tensor, "b n w"] | float]:
        """The normalised tokens, and the gate by which to multiply the branch's output."""
        # Cast to the weights' dtype: under autocast a mixed-dtype norm takes a slow path.
        normed = self.norm(x if self.norm.weight is None else x.to(self.norm.weight.dtype))
        if self.modulation is None or condition is None:
            return normed, 1.0
        scale, shift, gate = self.modulation(condition).chunk(3, -1)
        return normed * (1 + scale) + shift, gate


def time_features(time: Float[Tensor, "b"], width: int) -> Float[Tensor, "b w"]:
    """Sinusoidal embedding of the time, with geometrically spaced periods from `MIN_PERIOD` to `MAX_PERIOD` (pi0)."""
    # In float32, angles of the shortest periods (up to 1,600 rad) would be off by 1e-4.
    fraction = torch.linspace(0, 1, width // 2, device=time.device, dtype=torch.float64)
    angles = time[:, None] * (2 * math.pi / (MIN_PERIOD * (MAX_PERIOD / MIN_PERIOD) ** fraction))
    return torch.cat([angles.sin(), angles.cos()], -1).to(time.dtype)


def rotary(
    positions: Int[Tensor, "b n"], frequencies: Float[Tensor, "f"]
) -> tuple[Float[Tensor, "b 1 n r"], Float[Tensor, "b 1 n r"]]:
    """Cosines and sines of Llama's rotary embedding; r = 2 f rotated components, paired across the two halves."""
    angles = (positions[:, None, :, None] * frequencies).repeat(1, 1, 1, 2)
    return angles.cos(), angles.sin()


def rotate(
    x: Float[Tensor, "b g n e"], rotation: tuple[Float[Tensor, "b 1 n r"], Float[Tensor, "b 1 n r"]]
) -> Float[Tensor, "b g n e"]:
    """Rotates the first r components of each head; the others are unchanged."""
    cos, sin = rotation
    rotated, rest = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    first, second = rotated.chunk(2, -1)
    return torch.cat([rotated * cos + torch.cat([-second, first], -1) * sin, rest], -1).to(x.dtype)
