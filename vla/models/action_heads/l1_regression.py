"""The L1 regression module: a residual MLP on the hidden states of action query tokens.

Source: OpenVLA-OFT, Kim et al. 2025, arXiv 2502.19645, sec. 4.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

BLOCKS = 2


class L1Head(nn.Module):
    """Maps the hidden states of `horizon` x `width` action query tokens to as many normalised action components.

    The hidden states of a step's D = `width` tokens are concatenated to D d values. They pass a linear layer to
    `hidden_size`, two residual blocks x + relu(W norm(x)), and a linear layer to the step's D components.
    """

    def __init__(self, hidden_size: int, horizon: int, width: int) -> None:
        super().__init__()
        self.horizon, self.width = horizon, width
        self.action_in_proj = nn.Sequential(
            nn.LayerNorm(hidden_size * width), nn.Linear(hidden_size * width, hidden_size), nn.ReLU()
        )
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(hidden_size), nn.Linear(hidden_size, hidden_size), nn.ReLU())
            for _ in range(BLOCKS)
        )
        self.action_out_proj = nn.Sequential(nn.LayerNorm(hidden_size), nn.Linear(hidden_size, width))

    def forward(self, hidden: Float[Tensor, "b n d"]) -> Float[Tensor, "b h a"]:
        """Normalised actions from the hidden states of n = h a query tokens, ordered by step, then component."""
        x = self.action_in_proj(hidden.unflatten(1, (self.horizon, self.width)).flatten(2))
        for block in self.blocks:
            x = x + block(x)
        actions: Tensor = self.action_out_proj(x)
        return actions

    def loss(
        self, hidden: Float[Tensor, "b n d"], actions: Float[Tensor, "b h a"], mask: Bool[Tensor, "b h a"]
    ) -> Float[Tensor, "k"]:
        """|predicted - action| of the k components where `mask` is True, row by row."""
        return torch.abs(self(hidden).float() - actions)[mask]
