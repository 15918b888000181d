"""Autoregressive bins (RT-2, Brohan et al. 2023, arXiv 2307.15818; OpenVLA, Kim et al. 2024, arXiv 2406.09246).

Decoding is speculative: draft tokens are verified in one pass, and accepted up to the first that differs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from vla.errors import InputError
from vla.models.action_heads.action_head import Chunks, ChunkTarget, DecodeContext, Target, Vocabulary
from vla.models.action_heads.decoding import median_bins
from vla.models.action_heads.parallel import ParallelHead
from vla.models.action_tokenizers.bins import OpenVLABins
from vla.models.batch import IGNORE

UNIFORM, OPENVLA = "uniform", "openvla"


class BinsHead(ParallelHead):
    """Bins decoded one after the other, each conditioned on those before it.

    A value is the median of its distribution over bins, and the next token is conditioned on the bin that contains it.
    Decoding is Jacobi decoding (Santilli et al. 2023, arXiv 2305.10427; for actions Song et al. 2025, arXiv
    2503.02310): every pass reads the next `draft_length` tokens of a draft. The draft is first the previous action,
    then the prediction of the last pass. The bins equal those of one token a pass, up to rounding.

    Args:
        bins: "uniform" for the bins of `RobotSpec`, or "openvla" for those of OpenVLA's checkpoints: a value is the
            centre of the most probable bin, the loss has one-hot targets, and the end token is predicted too.
    """

    settings: Mapping[str, Any] = {"kind": "bins"}
    draft_length = 8
    """Draft length: tokens per pass when a single chunk is decoded. 1 disables speculative decoding."""

    def __init__(self, vocabulary: Vocabulary, bins: str = UNIFORM) -> None:
        if bins not in (UNIFORM, OPENVLA):
            raise InputError(f"the bins of a head are {UNIFORM} or {OPENVLA}, not {bins!r}")
        super().__init__(vocabulary)
        self._openvla = bins == OPENVLA
        if self._openvla:
            self.settings = {**self.settings, "bins": bins}
            self.bins = OpenVLABins()
            self.vocab_size, self.num_ordinal_tokens = self.bins.vocab_size, 0
            self.action_query_token = self.text + self.vocab_size
            self.num_action_positions += 1  # of the last token, which the end token follows

    def target(self, chunk: ChunkTarget) -> Target:
        """See `Head.target`."""
        found = super().target(chunk)
        if not self._openvla:
            return found
        ids = (self.text + self.bins.encode(chunk.actions)).tolist()
        end = self.eos if chunk.learned[-1] else IGNORE
        return Target([self.action_query_token, *ids, self.eos], [*found.labels, end])

    def _inputs(self, ids: list[int], known: int) -> list[int]:
        return [self.action_query_token, *ids[:-1]]

    def decode(self, context: DecodeContext) -> Chunks:
        """See `Head.decode`."""
        known = self.encode_prefix(context)
        count, width, cached, accepted = context.robot.action_tokens, context.robot.action_dim, 0, known.shape[1]
        tokens = F.pad(known, (0, count - accepted), value=self.text + self.vocab_size // 2)
        values, drafted = (tokens - self.text).float(), accepted
        # In a batch every row would wait for the row with the fewest accepted tokens, and wide passes are slower.
        ahead = self.draft_length if len(tokens) == 1 else 1
        while accepted < count:
            end = min(accepted + ahead, count)
            for i in range(max(drafted, width), end):
                tokens[:, i] = tokens[:, i - width]
            hidden = context.decode_tokens(F.pad(tokens, (1, 0), value=self.action_query_token)[:, cached:end], cached)
            logits = context.decoding.backbone.logits(hidden[:, accepted - cached :])[
                ..., self.text : self.action_query_token
            ]
            values[:, accepted:end] = self._value(logits.float())
            predicted = self.text + values[:, accepted:end].round().long().clamp(0, self.vocab_size - 1)
            matching = (predicted == tokens[:, accepted:end]).all(0).cumprod(0).sum()
            tokens[:, accepted:end] = predicted
            # The first token after the matching ones was conditioned on accepted tokens only; later ones were not.
            cached = accepted = min(accepted + int(matching) + 1, end)
            drafted = end
            context.decoding.rollback(end - cached)
        return self.chunks(context, values)

    def _value(self, logits: Float[Tensor, "*b n"]) -> Float[Tensor, "*b"]:
        """The bin index of each distribution, which may be fractional."""
        return logits.argmax(-1).float() if self._openvla else median_bins(logits)
