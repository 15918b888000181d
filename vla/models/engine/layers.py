"""What a fused transformer layer is made of: norms folded into the next linear, one product for q, k and v and one for
gate and up, attention without copies of shared heads.

Shapes: b rows, n tokens, m tokens with those before, d width, h query heads, g heads of keys and values, e their size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from vla.errors import InputError

FEW = 8
"""Tokens up to which torch's product with int8 weights is faster than one with weights made wide again."""

PRECISIONS = ("float32", "bfloat16", "int8", "fp8")
"""Of the weights; the last two are weight-only, with activations in bfloat16."""
Rotation = tuple[Float[Tensor, "*b n e"], Float[Tensor, "*b n e"]]
"""Cosines, and sines of which the first half has its sign changed: see `rotate`."""


def dtype_of(precision: str) -> torch.dtype:
    """Of activations. Raises InputError for another precision."""
    if precision not in PRECISIONS:
        raise InputError(f"an engine computes in one of {', '.join(PRECISIONS)}, not in {precision}")
    return torch.float32 if precision == "float32" else torch.bfloat16


@torch.no_grad()
def fused(
    linears: Sequence[nn.Linear], scale: Float[Tensor, "d"] | None = None, dtype: torch.dtype | None = None
) -> nn.Linear:
    """One linear map of the outputs of all, side by side, after a norm with these scales: W (s x) = (W s) x."""
    weight = torch.cat([linear.weight for linear in linears]).float()
    # The product is rounded once.
    weight = (weight if scale is None else weight * scale.float()).to(dtype or linears[0].weight.dtype)
    biased = linears[0].bias is not None
    joined = nn.Linear(weight.shape[1], weight.shape[0], bias=biased, device="meta")
    joined.weight = nn.Parameter(weight, requires_grad=False)
    if biased:
        joined.bias = nn.Parameter(torch.cat([linear.bias for linear in linears]).to(weight.dtype), requires_grad=False)
    return joined


class WeightOnly(nn.Module):
    """A linear map without bias whose weights are int8 or fp8 (e4m3), with a scale for each row."""

    weight: Tensor
    scale: Float[Tensor, "o"]

    def __init__(self, linear: nn.Linear, precision: str) -> None:
        super().__init__()
        whole = linear.weight.detach().float()
        most = 127.0 if precision == "int8" else torch.finfo(torch.float8_e4m3fn).max
        scale = whole.abs().amax(1).clamp(min=1e-12) / most
        rows = whole / scale[:, None]
        weight = rows.round().to(torch.int8) if precision == "int8" else rows.to(torch.float8_e4m3fn)
        self.register_buffer("weight", weight)
        self.register_buffer("scale", scale.to(linear.weight.dtype))

    def forward(self, x: Float[Tensor, "*b i"]) -> Float[Tensor, "*b o"]:
        if self.weight.dtype == torch.int8 and x[..., 0].numel() <= FEW:
            out: Tensor = torch._weight_int8pack_mm(x.reshape(-1, x.shape[-1]), self.weight, self.scale)
            return out.view(*x.shape[:-1], -1)
        return F.linear(x, self.weight.to(x.dtype)) * self.scale


def quantize(module: nn.Module, precision: str) -> None:
    """Puts `WeightOnly` in the place of the linear maps inside that have no bias."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear) and child.bias is None:
                setattr(parent, name, WeightOnly(child, precision))


@dataclass(frozen=True)
class Sizes:
    heads: int
    kv_heads: int
    head_dim: int
    eps: float
    scaling: float
    """Of the attention's scores."""

    @property
    def shared(self) -> int:
        """Query heads of one head of keys and values."""
        return self.heads // self.kv_heads


class FusedLayer(nn.Module):
    """A pre-norm layer with a gated MLP. Its norms have no scales: they are in `qkv` and `gate_up`."""

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
        return rms_norm(x, self.sizes.eps)

    def attention(
        self,
        normed: Float[Tensor, "b n d"],
        keys: Float[Tensor, "b g m e"],
        values: Float[Tensor, "b g m e"],
        rotation: Rotation,
        mask: Bool[Tensor, "b 1 q m"] | None,
    ) -> Float[Tensor, "b n d"]:
        """Of the last n of m tokens, whose keys and values are written in their place; `mask` as `grouped` makes it."""
        rows, count, _ = normed.shape
        sizes, first = self.sizes, keys.shape[2] - count
        mixed = self.qkv(normed).view(rows, count, -1, sizes.head_dim).transpose(1, 2)
        turned = rotate(mixed[:, : sizes.heads + sizes.kv_heads], rotation)
        keys[:, :, first:] = turned[:, sizes.heads :]
        values[:, :, first:] = mixed[:, sizes.heads + sizes.kv_heads :]
        # The query heads that share keys are further queries of one head: nothing is repeated.
        query = turned[:, : sizes.heads].reshape(rows, sizes.kv_heads, sizes.shared * count, sizes.head_dim)
        seen = F.scaled_dot_product_attention(query, keys, values, mask, scale=sizes.scaling)
        seen = seen.reshape(rows, sizes.heads, count, sizes.head_dim).transpose(1, 2)
        return self.out(seen.reshape(rows, count, -1))

    def mlp(self, normed: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        gate, up = self.gate_up(normed).chunk(2, -1)
        return self.down(self.activation(gate) * up)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        keys: Float[Tensor, "b g m e"],
        values: Float[Tensor, "b g m e"],
        rotation: Rotation,
        mask: Bool[Tensor, "b 1 q m"] | None,
    ) -> Float[Tensor, "b n d"]:
        x = x + self.attention(self.norm(x), keys, values, rotation, mask)
        return x + self.mlp(self.norm(x))


def rms_norm(x: Float[Tensor, "b n d"], eps: float) -> Float[Tensor, "b n d"]:
    """Without a scale."""
    if x.is_cuda or x.dtype != torch.float32:
        return F.rms_norm(x, x.shape[-1:], eps=eps)
    # On a CPU torch's own is many small operations more.
    return x * x.square().mean(-1, keepdim=True).add_(eps).rsqrt_()


def grouped(allowed: Bool[Tensor, "b n m"], shared: int) -> Bool[Tensor, "b 1 q m"]:
    """The mask of `shared` query heads one after the other."""
    return allowed.repeat(1, shared, 1)[:, None]


def signed(cos: Float[Tensor, "*b n e"], sin: Float[Tensor, "*b n e"], dtype: torch.dtype) -> Rotation:
    """What `rotate` takes, of cosines and sines as transformers has them."""
    first, second = sin.chunk(2, -1)
    return cos.to(dtype), torch.cat([-first, second], -1).to(dtype)


def rotate(x: Float[Tensor, "b h n e"], rotation: Rotation) -> Float[Tensor, "b h n e"]:
    """Llama's rotation by position: pairs are the two halves of a head."""
    cos, sin = rotation
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)
