"""Continuous actions in one pass, by L1 regression (OpenVLA-OFT, Kim et al. 2025, arXiv 2502.19645, sec. 4)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from vla.models.action_heads.action_expert import ExpertContext
from vla.models.action_heads.action_head import (
    Chunks,
    ChunkTarget,
    ContinuousHead,
    DecodeContext,
    Target,
    Vocabulary,
    finite,
)
from vla.models.action_heads.l1_regression import L1Head
from vla.models.batch import IGNORE, Batch
from vla.models.robot_spec import RobotSpec


class RegressionHead:
    """One action query token for each value of the chunk, padded to the largest action dimension (or `padded_dim`).

    Args:
        bidirectional: the query tokens attend to each other, as in OpenVLA-OFT; else attention is causal.
    """

    settings: Mapping[str, Any] = {"kind": "l1"}
    vocab_size, num_ordinal_tokens, conditions_on_prefix, reads_cache, fixed_horizon = 0, 0, True, False, False

    def __init__(self, vocabulary: Vocabulary, bidirectional: bool = False) -> None:
        self.bidirectional = bidirectional
        if bidirectional:
            self.settings = {**self.settings, "bidirectional": True}
        self._horizon, self._width = vocabulary.horizon, vocabulary.action_dim
        # Robots of one action dimension have the same padding (`vla.models.continued`).
        self._padded = torch.zeros(self._width + 1, dtype=torch.long)
        for robot in vocabulary.robots:
            self._padded[robot.action_dim] = robot.padded_dim or self._width
        self._robots = torch.tensor([robot.action_dim for robot in vocabulary.robots])
        self.num_action_positions = vocabulary.horizon * vocabulary.action_dim
        self.action_query_token, self.eos = vocabulary.text, vocabulary.eos

    @property
    def continuous(self) -> ContinuousHead:
        """See `Head.continuous`."""
        return self

    def target(self, chunk: ChunkTarget) -> Target:
        """See `Head.target`."""
        inputs = [self.action_query_token] * self._count(chunk.robot) + [self.eos]
        return Target(inputs, [IGNORE] * len(inputs), chunk.learned)

    def _count(self, robot: RobotSpec) -> int:
        """Number of action query tokens of a chunk."""
        return self._horizon * int(self._padded[robot.action_dim])

    def action_positions(self, order: Int[Tensor, "b n"], width: Int[Tensor, "b 1"]) -> Int[Tensor, "b n"]:
        """See `Head.action_positions`."""
        padded = self._padded.to(width.device)[width]
        return order // padded * self._width + order % padded

    def module(self, backbone: Any, conditioning: int) -> L1Head:
        """See `ContinuousHead.module`."""
        return L1Head(backbone.hidden_size, self._horizon, self._width)

    def loss(
        self,
        module: L1Head,
        batch: Batch,
        hidden: Float[Tensor, "b l d"],
        conditioning: Float[Tensor, "b n"],
        context: ExpertContext | None,
    ) -> Float[Tensor, "k"]:
        """See `ContinuousHead.loss`."""
        query_tokens = batch.input_ids == self.action_query_token
        widths = self._padded[self._robots].to(hidden.device)[batch.robot]
        chunks = torch.zeros_like(batch.actions)
        for width in widths.unique().tolist():
            rows = widths == width
            own = hidden[rows][query_tokens[rows]].unflatten(0, (-1, self._horizon * width))
            chunks[rows] = F.pad(module(own, width).float(), (0, self._width - width))
        return torch.abs(chunks - batch.actions)[batch.continuous_mask]

    def decode(self, context: DecodeContext) -> Chunks:
        """See `Head.decode`."""
        hidden = context.decode_tokens(
            torch.full(
                (len(context.conditioning), self._count(context.robot)),
                self.action_query_token,
                device=context.conditioning.device,
            ),
            0,
        )
        assert context.module is not None
        chunks = context.module(hidden, int(self._padded[context.robot.action_dim]))
        return finite(chunks[..., : context.robot.action_dim])
