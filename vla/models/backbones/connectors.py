"""Connectors map features of a vision encoder to tokens of a language model.

| kind          | tokens per image            | from       |
|---------------|-----------------------------|------------|
| linear        | one per patch               | LLaVA      |
| mlp           | one per patch               | LLaVA-1.5  |
| pixel_shuffle | one per square of patches   | InternVL   |
| qformer       | 32                          | BLIP-2     |
| resampler     | 64                          | Flamingo   |

Each maps features (n, rows * columns, c), in row-major order, to (n, tokens, d), and has an attribute `tokens`.
Shapes: n images, c width of the features, d width of the language model.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import Blip2QFormerConfig, Blip2QFormerModel

from vla.errors import InputError
from vla.models.backbones.attention import CrossAttention, feed_forward

Grid = tuple[int, int]


class Linear(nn.Linear):
    """One linear layer."""

    def __init__(self, width: int, grid: Grid, hidden_size: int) -> None:
        super().__init__(width, hidden_size)
        self.tokens = grid[0] * grid[1]


class Mlp(nn.Sequential):
    """Two linear layers with a GELU. `norm` adds a LayerNorm before them, for encoders without a final norm."""

    def __init__(self, width: int, grid: Grid, hidden_size: int, norm: bool = False) -> None:
        super().__init__(
            *([nn.LayerNorm(width)] if norm else []),
            nn.Linear(width, hidden_size),
            nn.GELU(),
            nn.Linear(hidden_size, hidden_size),
        )
        self.tokens = grid[0] * grid[1]


class PixelShuffle(nn.Module):
    """Merges `factor` x `factor` neighbouring patches into one token, followed by a norm and an MLP.

    Raises:
        InputError: when the grid is not divisible by `factor`.
    """

    def __init__(self, width: int, grid: Grid, hidden_size: int, factor: int = 2) -> None:
        super().__init__()
        rows, columns = grid
        if factor < 1 or rows % factor or columns % factor:
            raise InputError(f"a pixel shuffle by {factor} needs a grid that it divides, not {rows} x {columns}")
        self.grid, self.factor, self.tokens = grid, factor, rows * columns // factor**2
        self.mlp = Mlp(width * factor**2, (1, self.tokens), hidden_size, norm=True)

    def forward(self, features: Float[Tensor, "n p c"]) -> Float[Tensor, "n t d"]:
        """The tokens of each image, from its features."""
        rows, columns = self.grid
        blocks = features.unflatten(1, (rows // self.factor, self.factor, columns // self.factor, self.factor))
        return self.mlp(blocks.transpose(2, 3).flatten(3).flatten(1, 2))


class QFormer(nn.Module):
    """A BERT with learned queries, which attend to each other and, in every second layer, to the features."""

    def __init__(
        self,
        width: int,
        grid: Grid,
        hidden_size: int,
        queries: int = 32,
        query_width: int = 768,
        layers: int = 12,
        heads: int = 12,
    ) -> None:
        super().__init__()
        self.tokens = queries
        made: Any = Blip2QFormerConfig
        config = made(
            hidden_size=query_width,
            intermediate_size=4 * query_width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            encoder_hidden_size=width,
        )
        self.queries = nn.Parameter(0.02 * torch.randn(1, queries, query_width))
        self.qformer = Blip2QFormerModel(config)
        self.out = nn.Linear(query_width, hidden_size)

    def forward(self, features: Float[Tensor, "n p c"]) -> Float[Tensor, "n t d"]:
        """The tokens of each image, from its features."""
        queries = self.queries.expand(len(features), -1, -1)
        return self.out(self.qformer(query_embeds=queries, encoder_hidden_states=features).last_hidden_state)


class ResamplerLayer(nn.Module):
    """One layer of the resampler: latents attend to features and latents, then a feed-forward network."""

    def __init__(self, width: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.norm_features, self.norm_latents = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = CrossAttention(width, width, heads, head_width)
        self.ff = feed_forward(width)

    def forward(self, latents: Float[Tensor, "n t c"], features: Float[Tensor, "n p c"]) -> Float[Tensor, "n t c"]:
        """The latents after this layer."""
        queries = self.norm_latents(latents)
        keys = self.attention.keys(torch.cat([self.norm_features(features), queries], 1))
        latents = latents + self.attention(queries, keys)
        return latents + self.ff(latents)


class Resampler(nn.Module):
    """Flamingo's perceiver resampler, with a linear layer to `hidden_size` where the features have another width."""

    def __init__(
        self,
        width: int,
        grid: Grid,
        hidden_size: int,
        latents: int = 64,
        layers: int = 6,
        heads: int = 8,
        head_width: int = 64,
    ) -> None:
        super().__init__()
        self.tokens = latents
        self.latents = nn.Parameter(torch.randn(latents, width))
        self.layers = nn.ModuleList(ResamplerLayer(width, heads, head_width) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Identity() if width == hidden_size else nn.Linear(width, hidden_size)

    def forward(self, features: Float[Tensor, "n p c"]) -> Float[Tensor, "n t d"]:
        """The tokens of each image, from its features."""
        latents: Tensor = self.latents.expand(len(features), -1, -1)
        for layer in self.layers:
            latents = layer(latents, features)
        return self.out(self.norm(latents))


KINDS: dict[str, Callable[..., nn.Module]] = {
    "linear": Linear,
    "mlp": Mlp,
    "pixel_shuffle": PixelShuffle,
    "qformer": QFormer,
    "resampler": Resampler,
}


def build_connector(kind: str, vision_width: int, grid: Grid, hidden_size: int, **options: Any) -> nn.Module:
    """Builds a connector of `KINDS` with random weights.

    Args:
        grid: rows and columns of the features.
        options: further arguments of the connector.

    Raises:
        InputError: for an unknown kind or option, or an unsuitable grid.
    """
    if kind not in KINDS:
        raise InputError(f"there is no connector {kind}: choose of {', '.join(KINDS)}")
    known = list(inspect.signature(KINDS[kind]).parameters)[3:]
    if unknown := sorted(set(options) - set(known)):
        raise InputError(f"the connector {kind} has no option {unknown[0]}: it has {', '.join(known) or 'none'}")
    return KINDS[kind](vision_width, grid, hidden_size, **options)
