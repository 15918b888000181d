"""Flow matching by cross-attention: the actions of a chunk attend to the hidden states of the prompt and to the state.

Source: Evo-1, Lin et al. 2025, arXiv 2511.04555, as LeRobot's class computes it.

Shapes: b rows, h steps, a action components, m context tokens, d their width, w width of the action tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vla.errors import InputError
from vla.models.action_heads.flow_matching import integrate
from vla.models.action_heads.rtc_guidance import guided, previous_chunk
from vla.types import RTCPrefix

TIMES = 999
"""Largest index of a time: the embedding of t is that of the index int(999 t)."""
SHORTEST, LONGEST = 0.02, 0.98
"""Smallest and largest time in training."""
MAX_PERIOD = 10000.0

KeysValues = Sequence[tuple[Float[Tensor, "b g m e"], Float[Tensor, "b g m e"]]]
"""Keys and values of the context in each block."""


@dataclass(frozen=True)
class CrossFlowShape:
    """Sizes of a `CrossAttentionFlow`.

    Attributes:
        width: width of the action tokens, even and a multiple of `heads`.
        context: width of the prompt's hidden states.
        hidden, state_hidden: hidden sizes of the MLPs that write the velocity and read the state.
        steps: Euler steps.

    Raises:
        InputError: for sizes that are inconsistent.
    """

    width: int
    context: int
    layers: int = 8
    heads: int = 8
    hidden: int = 1024
    state_hidden: int = 1024
    steps: int = 32

    def __post_init__(self) -> None:
        if min(vars(self).values()) < 1 or self.width % self.heads or self.width % 2:
            raise InputError(f"sizes are at least 1, and the width even and a multiple of heads: not {vars(self)}")


@dataclass(frozen=True)
class PromptContext:
    """What the actions attend to.

    Attributes:
        hidden: hidden states of the prompt.
        mask: the tokens that are attended to.
        state: conditioning values, which form a further token.
    """

    hidden: Float[Tensor, "b m d"]
    mask: Bool[Tensor, "b m"]
    state: Float[Tensor, "b s"]

    def map(self, convert: Callable[[Tensor], Tensor]) -> PromptContext:
        """The context with each tensor converted."""
        return PromptContext(convert(self.hidden), convert(self.mask), convert(self.state))

    def pooled(self) -> PromptContext:
        """The context with the last valid token alone, the one that has attended to all others."""
        index = torch.arange(self.mask.shape[1], device=self.mask.device)
        last = (index * self.mask).argmax(1)[:, None]
        return PromptContext(
            self.hidden.take_along_dim(last[..., None], 1), torch.ones_like(last, dtype=torch.bool), self.state
        )


class CrossAttentionFlow(nn.Module):
    """Transforms uniform noise into a chunk of normalised actions along a learned velocity field.

    With x_t = (1 - t) noise + t actions, so noise at t = 0, it learns the velocity actions - noise. Training samples t
    from Beta(2, 2) within [0.02, 0.98]; sampling takes Euler steps from t = 0 to 1. The action tokens attend to the
    context only, and see each other where the velocity of the whole chunk is read from all of them.

    Args:
        state_width: number of conditioning values.
    """

    def __init__(self, shape: CrossFlowShape, horizon: int, action_dim: int, state_width: int) -> None:
        super().__init__()
        self.shape, self.horizon, self.action_dim = shape, horizon, action_dim
        width = shape.width
        self.action_in_proj = nn.Linear(action_dim, width)
        self.action_mlp = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
        self.state = nn.Sequential(
            nn.Linear(state_width, shape.state_hidden), nn.ReLU(), nn.Linear(shape.state_hidden, shape.context)
        )
        self.blocks = nn.ModuleList(CrossAttentionBlock(shape) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(width)
        self.pool = nn.Linear(horizon * width, width)
        self.velocity = nn.Sequential(
            nn.Linear(width, shape.hidden), nn.ReLU(), nn.Linear(shape.hidden, horizon * action_dim)
        )

    def keys_values(self, context: PromptContext) -> tuple[KeysValues, Bool[Tensor, "b 1 1 m"]]:
        """The keys and values of the context in each block, which do not depend on the actions, and its mask."""
        dtype = self.action_in_proj.weight.dtype
        tokens = torch.cat([context.hidden.to(dtype), self.state(context.state.to(dtype))[:, None]], 1)
        mask = F.pad(context.mask, (0, 1), value=True)[:, None, None]
        return [block.keys_values(tokens) for block in self.blocks], mask  # type: ignore[operator]

    def forward(
        self,
        noisy: Float[Tensor, "b h a"],
        time: Int[Tensor, "b"],
        context: tuple[KeysValues, Bool[Tensor, "b 1 1 m"]],
        mask: Bool[Tensor, "b h a"],
    ) -> Float[Tensor, "b h a"]:
        """The velocity at `noisy`, 0 where `mask` is False.

        Args:
            time: index of each row's time.
            context: from `keys_values`.
            mask: valid components; others enter as 0.
        """
        dtype, device = self.action_in_proj.weight.dtype, noisy.device
        width, (layers, visible) = self.shape.width, context
        steps = sinusoids(torch.arange(self.horizon, device=device), width).to(dtype)
        tokens = self.action_mlp(F.relu(self.action_in_proj(torch.where(mask, noisy, 0.0).to(dtype))) + steps)
        embedded = sinusoids(time, width).to(dtype)[:, None]
        for block, (keys, values) in zip(self.blocks, layers, strict=True):
            tokens = block(tokens, keys, values, visible, embedded)
        velocity = self.velocity(self.pool(self.norm(tokens).flatten(1))).unflatten(1, (self.horizon, -1))
        return torch.where(mask, velocity.float(), 0.0)

    def loss(
        self,
        actions: Float[Tensor, "b h a"],
        context: PromptContext,
        mask: Bool[Tensor, "b h a"],
        drawn: tuple[Float[Tensor, "b h a"], Float[Tensor, "b"]] | None = None,
    ) -> Float[Tensor, "k"]:
        """Squared error of the velocity for the k components where `mask` is True, row by row.

        Args:
            drawn: noise and times; sampled by default.
        """
        noise, time = drawn or (uniform_noise(actions.shape), sample_time(len(actions)))
        noise, time = noise.to(actions.device), time.to(actions.device)
        t = time[:, None, None]
        velocity = self((1 - t) * noise + t * actions, (time * TIMES).long(), self.keys_values(context), mask)
        return (velocity - (actions - noise)).square()[mask]

    @torch.no_grad()
    def sample(
        self, context: PromptContext, noise: Float[Tensor, "b h a"], mask: Bool[Tensor, "b h a"], prefix: RTCPrefix
    ) -> Float[Tensor, "b h a"]:
        """Samples normalised chunks from noise, 0 where `mask` is False.

        Args:
            prefix: the action prefix, which the chunks contain unchanged, and the leftover that guides the actions
                after it.
        """
        read, count = self.keys_values(context), self.shape.steps
        guidance = None if prefix.leftover is None else previous_chunk(prefix, self.horizon)

        def velocity(x: Tensor, step: int) -> Tensor:
            # `integrate` and `guided` have noise at time 1, and the velocity of the other direction.
            time = torch.full((len(x),), int(step / count * TIMES), device=x.device)

            def unguided(x: Tensor) -> Tensor:
                return -self(x, time, read, mask)

            back = 1 - step / count
            return unguided(x) if guidance is None else guided(unguided, x, back, *guidance, prefix.guidance_mode)

        return integrate(velocity, torch.where(mask, noise, 0.0), mask, prefix.committed, steps=count)


class CrossAttentionBlock(nn.Module):
    """Pre-norm cross-attention to the context, and an MLP to whose input the embedding of the time is added."""

    def __init__(self, shape: CrossFlowShape) -> None:
        super().__init__()
        self.heads, width = shape.heads, shape.width
        self.query, self.key_value = nn.Linear(width, width), nn.Linear(shape.context, 2 * width)
        self.out = nn.Linear(width, width)
        self.before_attention, self.before_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def keys_values(self, tokens: Float[Tensor, "b m d"]) -> tuple[Float[Tensor, "b g m e"], Float[Tensor, "b g m e"]]:
        """Keys and values of the context."""
        key, value = self.key_value(tokens).chunk(2, -1)
        return self._heads(key), self._heads(value)

    def forward(
        self,
        tokens: Float[Tensor, "b h w"],
        keys: Float[Tensor, "b g m e"],
        values: Float[Tensor, "b g m e"],
        mask: Bool[Tensor, "b 1 1 m"],
        time: Float[Tensor, "b 1 w"],
    ) -> Float[Tensor, "b h w"]:
        """Hidden states after this block."""
        query = self._heads(self.query(self.before_attention(tokens)))
        attended = F.scaled_dot_product_attention(query, keys, values, mask)
        tokens = tokens + self.out(attended.transpose(1, 2).flatten(2))
        return tokens + self.mlp(self.before_mlp(tokens) + time)

    def _heads(self, x: Float[Tensor, "b n w"]) -> Float[Tensor, "b g n e"]:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def sinusoids(index: Int[Tensor, "n"], width: int) -> Float[Tensor, "n w"]:
    """Sines and cosines of an index, interleaved, with periods from 2 pi to 2 pi times `MAX_PERIOD`."""
    # In float32, as in the training of the released weights.
    factors = torch.exp(torch.arange(0, width, 2, device=index.device) * -(math.log(MAX_PERIOD) / width))
    angles = index[:, None] * factors
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)


def uniform_noise(shape: Sequence[int], generator: torch.Generator | None = None) -> Float[Tensor, "*b"]:
    """Samples noise from the uniform distribution on [-1, 1), on the CPU."""
    return torch.rand(tuple(shape), device="cpu", generator=generator) * 2 - 1


def sample_time(count: int, generator: torch.Generator | None = None) -> Float[Tensor, "b"]:
    """Samples t from Beta(2, 2), the distribution of the median of three uniform numbers, on the CPU."""
    return torch.rand(3, count, device="cpu", generator=generator).median(0).values.clamp(SHORTEST, LONGEST)
