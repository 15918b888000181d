"""Bins, all at once: each is predicted in the place of a blank (parallel decoding: OpenVLA-OFT, Kim et al. 2025,
arXiv 2502.19645, sec. 4)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vla.models.action_heads.action_head import Chunks, DecodeContext, Target, Vocabulary
from vla.models.action_heads.decoding import median_bins
from vla.models.batch import IGNORE
from vla.models.robot_spec import RobotSpec


class ParallelHead:
    """No action is told another: each must be read off the images, not off the one before it.

    `bidirectional`: the slots of a chunk look at each other, as in OpenVLA-OFT; else each at those before it.
    """

    settings: Mapping[str, Any] = {"kind": "parallel"}
    conditions_on_prefix, regression = False, None

    def __init__(self, vocabulary: Vocabulary, bidirectional: bool = False) -> None:
        self.bidirectional = bidirectional
        if bidirectional:
            self.settings = {**self.settings, "bidirectional": True}
        self.bins = vocabulary.robots[0].bins
        self.rows = self.ordered = self.bins.vocab_size
        self.slots, self._widest = vocabulary.horizon * vocabulary.width, vocabulary.width
        self.text, self.blank, self.eos = vocabulary.text, vocabulary.text + self.rows, vocabulary.eos

    def target(
        self,
        robot: RobotSpec,
        actions: Float[np.ndarray, "h a"],
        inside: Bool[np.ndarray, "h"],
        given: int,
        rng: np.random.Generator | None,
    ) -> Target:
        ids = (self.text + self.bins.encode(actions)).tolist()
        wanted = np.repeat(inside & (np.arange(len(actions)) >= given), robot.width)
        # A label belongs to the token before it: the blank itself.
        labels = np.where(wanted, ids, IGNORE).tolist()
        return Target([*self._inputs(ids, given * robot.width), self.eos], [IGNORE, *labels])

    def _inputs(self, ids: list[int], known: int) -> list[int]:
        return [*ids[:known], *[self.blank] * (len(ids) - known)]

    def places(self, order: Int[Tensor, "b n"], width: Int[Tensor, "b 1"]) -> Int[Tensor, "b n"]:
        """A token's step's, and in that its component's; a robot narrower than the widest leaves some unused."""
        return order // width * self._widest + order % width

    def decode(self, asked: DecodeContext) -> Chunks:
        robot, known = asked.robot, self.encode_given(asked)
        ids = torch.full((len(known), robot.action_tokens), self.blank, device=known.device)
        ids[:, : known.shape[1]] = known
        hidden = asked.ask(ids, 0)
        values = median_bins(asked.decoding.backbone.logits(hidden)[..., self.text : self.blank].float())
        return self.chunks(asked, values)

    def encode_given(self, asked: DecodeContext) -> Int[Tensor, "b n"]:
        """Tokens of the actions under way; none where there are none."""
        if asked.given is None:
            return torch.zeros(len(asked.told), 0, dtype=torch.long, device=asked.told.device)
        known = np.stack([self.bins.encode(chunk) for chunk in asked.given])
        return self.text + torch.from_numpy(known).to(asked.told.device)

    def chunks(self, asked: DecodeContext, values: Float[Tensor, "b n"]) -> Chunks:
        return [self.bins.decode(row, asked.robot.horizon, asked.robot.width) for row in values.cpu().numpy()]
