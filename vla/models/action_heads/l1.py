"""Continuous actions in one pass, by L1 regression (OpenVLA-OFT, Kim et al. 2025, arXiv 2502.19645, sec. 4)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from vla.models.action_heads.action_head import Chunks, ChunkTarget, DecodeContext, LossRows, Target, Vocabulary, finite
from vla.models.action_heads.l1_regression import L1Head
from vla.models.batch import IGNORE
from vla.models.robot_spec import RobotSpec


class RegressionHead:
    """One action query token for each value of the chunk, padded to the largest action dimension (or `padded_dim`).

    Args:
        bidirectional: the query tokens attend to each other, as in OpenVLA-OFT; else attention is causal.
        in_prompt: the query tokens and the end token are the end of the prompt, so that its tokens attend to them, and
            a value is read one token before its query token (OpenVLA-OFT's checkpoints).
    """

    settings: Mapping[str, Any] = {"kind": "l1"}
    vocab_size, num_ordinal_tokens, conditions_on_prefix, reads_cache, fixed_horizon = 0, 0, True, False, False

    def __init__(self, vocabulary: Vocabulary, bidirectional: bool = False, in_prompt: bool = False) -> None:
        self.bidirectional, self._in_prompt = bidirectional, in_prompt
        chosen = {"bidirectional": bidirectional, "in_prompt": in_prompt}
        self.settings = {**self.settings, **{name: True for name, value in chosen.items() if value}}
        self._horizon, self._width = vocabulary.horizon, vocabulary.action_dim
        # Robots of one action dimension have the same padding (`vla.models.continued`).
        self._padded = torch.zeros(self._width + 1, dtype=torch.long)
        for robot in vocabulary.robots:
            self._padded[robot.action_dim] = robot.padded_dim or self._width
        self._robots = torch.tensor([robot.action_dim for robot in vocabulary.robots])
        self.num_action_positions = vocabulary.horizon * vocabulary.action_dim
        self.action_query_token, self.eos = vocabulary.text, vocabulary.eos

    @property
    def continuous(self) -> RegressionHead:
        """See `Head.continuous`."""
        return self

    @property
    def _tokens(self) -> list[int]:
        return [self.action_query_token] * self.num_action_positions + [self.eos]

    @property
    def prompt_tokens(self) -> list[int]:
        """The tokens that end a prompt."""
        return self._tokens if self._in_prompt else []

    def target(self, chunk: ChunkTarget) -> Target:
        """See `Head.target`."""
        tokens = [self.action_query_token] * self._count(chunk.robot) + [self.eos]
        inputs = [] if self._in_prompt else tokens
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

    def loss(self, module: L1Head, rows: LossRows) -> Float[Tensor, "k"]:
        """See `ContinuousHead.loss`."""
        batch, hidden = rows.batch, rows.hidden
        if self._in_prompt:
            first = batch.prompt_length[:, None] - len(self._tokens) - 1
            columns = first + torch.arange(self.num_action_positions, device=first.device)
            chunks = module(hidden.take_along_dim(columns[..., None], 1)).float()
        else:
            chunks = self._chunks(module, rows)
        return torch.abs(chunks - batch.actions)[batch.continuous_mask]

    def _chunks(self, module: L1Head, rows: LossRows) -> Float[Tensor, "b h a"]:
        """The normalised chunks of training rows, whose robots may have different numbers of query tokens."""
        batch, hidden = rows.batch, rows.hidden
        query_tokens = batch.input_ids == self.action_query_token
        widths = self._padded[self._robots].to(hidden.device)[batch.robot]
        chunks = torch.zeros_like(batch.actions)
        for width in widths.unique().tolist():
            selected = widths == width
            own = hidden[selected][query_tokens[selected]].unflatten(0, (-1, self._horizon * width))
            chunks[selected] = F.pad(module(own, width).float(), (0, self._width - width))
        return chunks

    def decode(self, context: DecodeContext) -> Chunks:
        """See `Head.decode`."""
        assert context.module is not None
        if self._in_prompt:
            ahead = len(self._tokens) + 1
            chunks = context.module(context.decoding.hidden[:, -ahead : self.num_action_positions - ahead])
        else:
            shape = (len(context.conditioning), self._count(context.robot))
            queries = torch.full(shape, self.action_query_token, device=context.conditioning.device)
            hidden = context.decode_tokens(queries, 0)
            chunks = context.module(hidden, int(self._padded[context.robot.action_dim]))
        return finite(chunks[..., : context.robot.action_dim])
