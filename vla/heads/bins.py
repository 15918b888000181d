"""Bins, one after the other (RT-2, Brohan et al. 2023, arXiv 2307.15818; OpenVLA, Kim et al. 2024,
arXiv 2406.09246)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F

from vla.heads.decoding import median_bins
from vla.heads.parallel import ParallelHead
from vla.heads.protocol import Asked, Chunks


class BinsHead(ParallelHead):
    """Each action is told those before it. A bin that is said is the median; the next is told the one that it is in."""

    settings: Mapping[str, Any] = {"kind": "bins"}

    def _inputs(self, ids: list[int], known: int) -> list[int]:
        return [self.blank, *ids[:-1]]

    def decode(self, asked: Asked) -> Chunks:
        known = self.encode_given(asked)
        hidden = asked.ask(F.pad(known, (1, 0), value=self.blank), 0)
        values = list((known - self.text).float().T)
        for place in range(len(values) + 1, asked.robot.action_tokens + 1):
            logits = asked.decoding.backbone.logits(hidden[:, -1])[:, self.text : self.blank]
            values.append(median_bins(logits.float()))
            if place < asked.robot.action_tokens:
                hidden = asked.ask(self.text + values[-1].round().long().clamp(0, self.rows - 1)[:, None], place)
        return self.chunks(asked, torch.stack(values, 1))
