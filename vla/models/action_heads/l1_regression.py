"""The L1 regression module: a residual MLP on the hidden states of action query tokens.

Source: OpenVLA-OFT, Kim et al. 2025, arXiv 2502.19645, sec. 4.
"""

from __future__ import annotations

from typing import Any, cast

import torch.nn.functional as F
from jaxtyping import Float
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

    def forward(self, hidden: Float[Tensor, "b n d"], width: int | None = None) -> Float[Tensor, "b h a"]:
        """Normalised actions from the hidden states of n = h a query tokens, ordered by step, then component.

        Args:
            hidden: the hidden states.
            width: number of components; fewer than D use the first rows and columns of the layers.
        """
        width = width or self.width
        x = hidden.unflatten(1, (self.horizon, width)).flatten(2)
        norm, linear, activation = (cast(Any, layer) for layer in self.action_in_proj)
        count = x.shape[-1]
        x = F.layer_norm(x, (count,), norm.weight[:count], norm.bias[:count], norm.eps)
        x = activation(F.linear(x, linear.weight[:, :count], linear.bias))
        for block in self.blocks:
            x = x + block(x)
        norm, linear = (cast(Any, layer) for layer in self.action_out_proj)
        actions: Tensor = F.linear(norm(x), linear.weight[:width], linear.bias[:width])
        return actions
