"""Bins in one pass, each predicted at an action query token.

Source of parallel decoding: OpenVLA-OFT, Kim et al. 2025, arXiv 2502.19645, sec. 4.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from vla.models.action_heads.action_head import Chunks, ChunkTarget, DecodeContext, Target, Vocabulary
from vla.models.action_heads.decoding import median_bins
from vla.models.action_tokenizers.bins import OpenVLABins, UniformBins
from vla.models.batch import IGNORE


class ParallelHead:
    """Bins predicted independently, one action query token each.

    No action is conditioned on the previous one, so the model cannot copy it and must use the images.

    Args:
        bidirectional: the tokens of a chunk attend to each other, as in OpenVLA-OFT; else attention is causal.
    """

    settings: Mapping[str, Any] = {"kind": "parallel"}
    conditions_on_prefix, continuous, fixed_horizon = False, None, False

    def __init__(self, vocabulary: Vocabulary, bidirectional: bool = False) -> None:
        self.bidirectional = bidirectional
        if bidirectional:
            self.settings = {**self.settings, "bidirectional": True}
        self.bins: UniformBins | OpenVLABins = vocabulary.robots[0].bins
        self.vocab_size = self.num_ordinal_tokens = self.bins.vocab_size
        self.num_action_positions, self._widest = vocabulary.horizon * vocabulary.action_dim, vocabulary.action_dim
        self.text, self.eos = vocabulary.text, vocabulary.eos
        self.action_query_token = vocabulary.text + self.vocab_size

    def target(self, chunk: ChunkTarget) -> Target:
        """See `Head.target`."""
        ids = (self.text + self.bins.encode(chunk.actions)).tolist()
        wanted = np.repeat(chunk.learned, chunk.robot.action_dim)
        # A query token predicts its own value, so the labels are shifted by one position.
        labels = np.where(wanted, ids, IGNORE).tolist()
        return Target([*self._inputs(ids, chunk.prefix_length * chunk.robot.action_dim), self.eos], [IGNORE, *labels])

    def _inputs(self, ids: list[int], known: int) -> list[int]:
        return [*ids[:known], *[self.action_query_token] * (len(ids) - known)]

    def action_positions(self, order: Int[Tensor, "b n"], width: Int[Tensor, "b 1"]) -> Int[Tensor, "b n"]:
        """Index by step and component; robots with fewer components leave some indices unused."""
        return order // width * self._widest + order % width

    def decode(self, context: DecodeContext) -> Chunks:
        """See `Head.decode`."""
        robot, known = context.robot, self.encode_prefix(context)
        ids = torch.full((len(known), robot.action_tokens), self.action_query_token, device=known.device)
        ids[:, : known.shape[1]] = known
        hidden = context.decode_tokens(ids, 0)
        values = median_bins(context.decoding.backbone.logits(hidden)[..., self.text : self.action_query_token].float())
        return self.chunks(context, values)

    def encode_prefix(self, context: DecodeContext) -> Int[Tensor, "b n"]:
        """Tokens of the action prefix."""
        known = np.stack([self.bins.encode(chunk) for chunk in context.prefix.committed])
        return self.text + torch.from_numpy(known).to(context.conditioning.device)

    def chunks(self, context: DecodeContext, values: Float[Tensor, "b n"]) -> Chunks:
        """Normalised chunks of fractional bin indices."""
        return [self.bins.decode(row, context.robot.horizon, context.robot.action_dim) for row in values.cpu().numpy()]
