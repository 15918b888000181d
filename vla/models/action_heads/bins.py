"""Bins, one after the other (RT-2, Brohan et al. 2023, arXiv 2307.15818; OpenVLA, Kim et al. 2024,
arXiv 2406.09246), decoded speculatively: some are guessed, and kept as far as they are what would have been said."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F

from vla.models.action_heads.action_head import Chunks, DecodeContext, Vocabulary
from vla.models.action_heads.decoding import median_bins
from vla.models.action_heads.parallel import ParallelHead


class BinsHead(ParallelHead):
    """Each action is told those before it. A bin that is said is the median; the next is told the one that it is in.

    Decoding is Jacobi's (Santilli et al. 2023, arXiv 2305.10427; for actions Song et al. 2025, arXiv 2503.02310): every
    pass reads the next `draft_length` tokens as they were guessed, first as those of the action before, then as the last
    pass said them. The bins are those of one token a pass, up to rounding.
    """

    settings: Mapping[str, Any] = {"kind": "bins"}
    draft_length = 8
    """Tokens of a pass at the most where one chunk is decoded, hardly slower than one token; 1: none are guessed."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        super().__init__(vocabulary)

    def _inputs(self, ids: list[int], known: int) -> list[int]:
        return [self.action_query_token, *ids[:-1]]

    def decode(self, context: DecodeContext) -> Chunks:
        known = self.encode_action_prefix(context)
        count, width, cached, sure = context.robot.action_tokens, context.robot.action_dim, 0, known.shape[1]
        tokens = F.pad(known, (0, count - sure), value=self.text + self.rows // 2)
        values, conditioning = (tokens - self.text).float(), sure
        # Of a batch every row would wait for the row that is guessed worst, and wide passes take their time.
        ahead = self.draft_length if len(tokens) == 1 else 1
        while sure < count:
            end = min(sure + ahead, count)
            for place in range(max(conditioning, width), end):
                tokens[:, place] = tokens[:, place - width]
            hidden = context.decode_tokens(F.pad(tokens, (1, 0), value=self.action_query_token)[:, cached:end], cached)
            logits = context.decoding.backbone.logits(hidden[:, sure - cached :])[
                ..., self.text : self.action_query_token
            ]
            values[:, sure:end] = median_bins(logits.float())
            said = self.text + values[:, sure:end].round().long().clamp(0, self.rows - 1)
            right = (said == tokens[:, sure:end]).all(0).cumprod(0).sum()
            tokens[:, sure:end] = said
            # The first token after the right ones was told the truth alone; what follows it was not.
            cached = sure = min(sure + int(right) + 1, end)
            conditioning = end
            context.decoding.rollback(end - cached)
        return self.chunks(context, values)
