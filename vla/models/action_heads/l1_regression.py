"""Continuous actions in one pass: a residual MLP on the hidden states of empty slots (OpenVLA-OFT, Kim et al. 2025,
arXiv 2502.19645, sec. 4)."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

BLOCKS = 2


class L1Head(nn.Module):
    """From the hidden states of `horizon` x `width` slots to as many normalised action components.

    The backbone reads one empty slot for each component of each step. The states of a
    step's slots side by side, D d numbers, pass a linear layer to `hidden_size`, two residual blocks
    x + relu(W norm(x)), and a linear layer to the step's D components.
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
        """`forward` are those of the slots, n = h a of them, a step's components together."""
        x = self.action_in_proj(hidden.unflatten(1, (self.horizon, self.width)).flatten(2))
        for block in self.blocks:
            x = x + block(x)
        actions: Tensor = self.action_out_proj(x)
        return actions

    def loss(
        self, hidden: Float[Tensor, "b n d"], actions: Float[Tensor, "b h a"], mask: Bool[Tensor, "b h a"]
    ) -> Float[Tensor, "k"]:
        """|predicted - action| of each of the k components where `mask` is True, row by row."""
        return torch.abs(self(hidden).float() - actions)[mask]
