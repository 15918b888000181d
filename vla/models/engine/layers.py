"""A fused transformer layer.

Norms are folded into the next linear layer, q, k and v are one product, gate and up another, and attention does not
copy shared heads.

Shapes: b rows, n new tokens, m tokens in total, d width, h query heads, g key-value heads, e the size of a head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from vla.errors import InputError

MAX_INT8_TOKENS = 8
"""Up to this many tokens torch's int8 product is faster than one with dequantised weights."""

PRECISIONS = ("float32", "bfloat16", "int8", "fp8")
"""Precisions of the weights; the last two are weight-only quantisation, with activations in bfloat16."""
Rotation = tuple[Float[Tensor, "*b n e"], Float[Tensor, "*b n e"]]
"""Cosines, and sines with the first half negated (see `rotate`)."""
CachedLayer = tuple[Float[Tensor, "b g m e"], Float[Tensor, "b g m e"]]
"""Keys and values of a layer, with places for those of the new tokens."""
GroupedMask = Bool[Tensor, "b 1 q m"]
"""An attention mask by `grouped`."""


def dtype_of(precision: str) -> torch.dtype:
    """The dtype of activations at a precision. Raises InputError for an unknown precision."""
    if precision not in PRECISIONS:
        raise InputError(f"an engine's precision is one of {', '.join(PRECISIONS)}, not {precision}")
    return torch.float32 if precision == "float32" else torch.bfloat16


@torch.no_grad()
def fused(
    linears: Sequence[nn.Linear], scale: Float[Tensor, "d"] | None = None, dtype: torch.dtype | None = None
) -> nn.Linear:
    """One linear layer with the concatenated outputs of `linears`; a norm's scale is folded in: W (s x) = (W s) x."""
    weight = torch.cat([linear.weight for linear in linears]).float()
    # The product is computed in float32 and rounded once.
    weight = (weight if scale is None else weight * scale.float()).to(dtype or linears[0].weight.dtype)
    biased = linears[0].bias is not None
    joined = nn.Linear(weight.shape[1], weight.shape[0], bias=biased, device="meta")
    joined.weight = nn.Parameter(weight, requires_grad=False)
    if biased:
        joined.bias = nn.Parameter(torch.cat([linear.bias for linear in linears]).to(weight.dtype), requires_grad=False)
    return joined


class WeightOnly(nn.Module):
    """A linear layer without bias, with int8 or fp8 (e4m3) weights and one scale per row."""

    weight: Tensor
    scale: Float[Tensor, "o"]

    def __init__(self, linear: nn.Linear, precision: str) -> None:
        super().__init__()
        original = linear.weight.detach().float()
        largest = 127.0 if precision == "int8" else torch.finfo(torch.float8_e4m3fn).max
        scale = original.abs().amax(1).clamp(min=1e-12) / largest
        rows = original / scale[:, None]
        weight = rows.round().to(torch.int8) if precision == "int8" else rows.to(torch.float8_e4m3fn)
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale.to(linear.weight.dtype))

    def forward(self, x: Float[Tensor, "*b i"]) -> Float[Tensor, "*b o"]:
        """The product with the dequantised weights."""
        if self.weight.dtype == torch.int8 and x[..., 0].numel() <= MAX_INT8_TOKENS:
            out: Tensor = torch._weight_int8pack_mm(x.reshape(-1, x.shape[-1]), self.weight, self.scale)
            return out.view(*x.shape[:-1], -1)
        return F.linear(x, self.weight.to(x.dtype)) * self.scale


def quantize(module: nn.Module, precision: str) -> None:
    """Replaces the linear layers without bias in `module` by `WeightOnly`, in place."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear) and child.bias is None:
                setattr(parent, name, WeightOnly(child, precision))


@dataclass(frozen=True)
class Sizes:
    """Sizes of an attention layer."""

    heads: int
    kv_heads: int
    head_dim: int
    eps: float
    scaling: float
    """Factor of the attention scores."""

    @property
    def shared(self) -> int:
        """Number of query heads per key-value head."""
        return self.heads // self.kv_heads


class FusedLayer(nn.Module):
    """A pre-norm layer with a gated MLP. The scales of its norms are folded into `qkv` and `gate_up`."""

    def __init__(
        self,
        sizes: Sizes,
        qkv: nn.Module,
        out: nn.Module,
        gate_up: nn.Module,
        down: nn.Module,
        activation: Callable[[Tensor], Tensor],
    ) -> None:
        super().__init__()
        self.sizes, self.activation = sizes, activation
        self.qkv, self.out, self.gate_up, self.down = qkv, out, gate_up, down

    def norm(self, x: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """RMS norm without a scale."""
        return rms_norm(x, self.sizes.eps)

    def attention(
        self, normed: Float[Tensor, "b n d"], cached: CachedLayer, rotation: Rotation, mask: GroupedMask | None
    ) -> Float[Tensor, "b n d"]:
        """Attention of the last n of m tokens, whose keys and values are written in place."""
        keys, values = cached
        rows, count, _ = normed.shape
        sizes, first = self.sizes, keys.shape[2] - count
        mixed = self.qkv(normed).view(rows, count, -1, sizes.head_dim).transpose(1, 2)
        rotated = rotate(mixed[:, : sizes.heads + sizes.kv_heads], rotation)
        keys[:, :, first:] = rotated[:, sizes.heads :]
        values[:, :, first:] = mixed[:, sizes.heads + sizes.kv_heads :]
        # Query heads that share keys become further queries of one head, so that keys are not repeated.
        query = rotated[:, : sizes.heads].reshape(rows, sizes.kv_heads, sizes.shared * count, sizes.head_dim)
        attended = F.scaled_dot_product_attention(query, keys, values, mask, scale=sizes.scaling)
        attended = attended.reshape(rows, sizes.heads, count, sizes.head_dim).transpose(1, 2)
        return self.out(attended.reshape(rows, count, -1))

    def mlp(self, normed: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """The gated MLP."""
        gate, up = self.gate_up(normed).chunk(2, -1)
        return self.down(self.activation(gate) * up)

    def forward(
        self, x: Float[Tensor, "b n d"], cached: CachedLayer, rotation: Rotation, mask: GroupedMask | None
    ) -> Float[Tensor, "b n d"]:
        """Hidden states after this layer; arguments as in `attention`."""
        x = x + self.attention(self.norm(x), cached, rotation, mask)
        return x + self.mlp(self.norm(x))


def rms_norm(x: Float[Tensor, "b n d"], eps: float) -> Float[Tensor, "b n d"]:
    """RMS norm without a scale."""
    if x.is_cuda or x.dtype != torch.float32:
        return F.rms_norm(x, x.shape[-1:], eps=eps)
    # On a CPU, torch's implementation runs many more small operations.
    return x * x.square().mean(-1, keepdim=True).add_(eps).rsqrt_()


def grouped(allowed: Bool[Tensor, "b n m"], shared: int) -> GroupedMask:
    """The attention mask repeated for `shared` query heads, as `FusedLayer` orders its queries."""
    return allowed.repeat(1, shared, 1)[:, None]


def signed(cos: Float[Tensor, "*b n e"], sin: Float[Tensor, "*b n e"], dtype: torch.dtype) -> Rotation:
    """Converts cosines and sines of transformers to the form that `rotate` takes."""
    first, second = sin.chunk(2, -1)
    return cos.to(dtype), torch.cat([-first, second], -1).to(dtype)


def rotate(x: Float[Tensor, "b h n e"], rotation: Rotation) -> Float[Tensor, "b h n e"]:
    """Llama's rotary embedding, with components paired across the two halves of a head."""
    cos, sin = rotation
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)
