"""Actions as integers in the model's text vocabulary (VLA-0, Goyal et al. 2025, arXiv 2510.13054)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from vla.models.action_heads.action_head import Chunks, ChunkTarget, DecodeContext, Target, Vocabulary
from vla.models.action_heads.autoregressive import generate_constrained
from vla.models.action_tokenizers.integers import IntegerText, allowed_tokens, digit_tokens, mask_digits
from vla.models.batch import IGNORE


class TextHead:
    """Actions as text with integers. The integers cover the same range as the robots' bins.

    It adds no vocabulary except the action query token, which starts the text.
    """

    settings: Mapping[str, Any] = {"kind": "text"}
    fixed_horizon = False
    vocab_size, num_ordinal_tokens, num_action_positions, conditions_on_prefix, bidirectional, continuous = (
        0,
        0,
        1,
        False,
        False,
        None,
    )

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.tokenizer, self.integers = vocabulary.tokenizer, IntegerText(limit=vocabulary.robots[0].bins.limit)
        self.action_query_token, self.pad, self.eos = vocabulary.text, vocabulary.pad, vocabulary.eos
        self._allowed = torch.from_numpy(allowed_tokens(self.tokenizer))
        self._digits = digit_tokens(self.tokenizer)

    def target(self, chunk: ChunkTarget) -> Target:
        """See `Head.target`."""
        words = self._words(chunk.actions)
        wanted = np.repeat(chunk.learned, chunk.robot.action_dim)
        ids = np.concatenate(words)
        labels = np.where(np.repeat(wanted, [len(word) for word in words]), ids, IGNORE)
        known = sum(map(len, words[: chunk.prefix_length * chunk.robot.action_dim]))
        if chunk.rng is not None:  # the action prefix is never masked
            ids[known:] = mask_digits(ids[known:], self._digits, self.pad, chunk.rng)
        return Target([self.action_query_token, *ids.tolist(), self.eos], [IGNORE, *labels.tolist(), self.eos])

    def _words(self, actions: Float[np.ndarray, "h a"]) -> Sequence[Int[np.ndarray, "_n"]]:
        """Tokens of each integer with its leading space: the first actions' tokens are then a prefix of all tokens."""
        words = self.integers.encode(actions).split()
        return [np.array(self.tokenizer.encode(f" {word}", add_special_tokens=False).ids) for word in words]

    def action_positions(self, order: Int[Tensor, "b n"], width: Int[Tensor, "b 1"]) -> Int[Tensor, "b n"]:
        """See `Head.action_positions`."""
        return torch.zeros_like(order)

    def decode(self, context: DecodeContext) -> Chunks:
        """See `Head.decode`."""
        robot = context.robot
        longest = robot.action_tokens * (len(str(self.integers.steps)) + 1)
        known = [[int(i) for word in self._words(actions) for i in word] for actions in context.prefix.committed]
        tokens = generate_constrained(context, self.action_query_token, known, self._allowed, self.eos, longest + 1)
        return [self.integers.decode(self.tokenizer.decode(row), robot.horizon, robot.action_dim) for row in tokens]
