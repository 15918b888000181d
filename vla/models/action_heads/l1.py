"""Continuous actions in one pass, by L1 regression (OpenVLA-OFT, Kim et al. 2025, arXiv 2502.19645, sec. 4)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vla.models.action_heads.action_head import Chunks, ChunkTarget, DecodeContext, LossRows, Target, Vocabulary, finite
from vla.models.action_heads.l1_regression import L1Head
from vla.models.batch import IGNORE


class RegressionHead:
    """One action query token for each value of the chunk, padded to the largest action dimension.

    Args:
        bidirectional: the query tokens attend to each other, as in OpenVLA-OFT; else attention is causal.
    """

    settings: Mapping[str, Any] = {"kind": "l1"}
    vocab_size, num_ordinal_tokens, conditions_on_prefix, reads_cache = 0, 0, True, False

    def __init__(self, vocabulary: Vocabulary, bidirectional: bool = False) -> None:
        self.bidirectional = bidirectional
        if bidirectional:
            self.settings = {**self.settings, "bidirectional": True}
        self._horizon, self._width = vocabulary.horizon, vocabulary.action_dim
        self.num_action_positions = vocabulary.horizon * vocabulary.action_dim
        self.action_query_token, self.eos = vocabulary.text, vocabulary.eos

    @property
    def continuous(self) -> RegressionHead:
        """See `Head.continuous`."""
        return self

    def target(self, chunk: ChunkTarget) -> Target:
        """See `Head.target`."""
        inputs = [self.action_query_token] * self.num_action_positions + [self.eos]
        return Target(inputs, [IGNORE] * len(inputs), chunk.learned)

    def action_positions(self, order: Int[Tensor, "b n"], width: Int[Tensor, "b 1"]) -> Int[Tensor, "b n"]:
        """See `Head.action_positions`."""
        return order

    def module(self, backbone: Any, conditioning: int) -> L1Head:
        """See `ContinuousHead.module`."""
        return L1Head(backbone.hidden_size, self._horizon, self._width)

    def loss(self, module: L1Head, rows: LossRows) -> Float[Tensor, "k"]:
        """See `ContinuousHead.loss`."""
        batch, shape = rows.batch, (len(rows.hidden), self.num_action_positions)
        queries = rows.hidden[batch.input_ids == self.action_query_token].unflatten(0, shape)
        return module.loss(queries, batch.actions, batch.continuous_mask)

    def decode(self, context: DecodeContext) -> Chunks:
        """See `Head.decode`."""
        hidden = context.decode_tokens(
            torch.full(
                (len(context.conditioning), self.num_action_positions),
                self.action_query_token,
                device=context.conditioning.device,
            ),
            0,
        )
        assert context.module is not None
        return finite(context.module(hidden)[..., : context.robot.action_dim])
