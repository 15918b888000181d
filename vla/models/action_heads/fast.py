"""Autoregressive FAST tokens (pi0-FAST: Pertsch et al. 2025, arXiv 2501.09747)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from tokenizers import Tokenizer
from torch import Tensor

from vla.errors import InputError
from vla.models.action_heads.action_head import Chunks, ChunkTarget, DecodeContext, Target, Vocabulary
from vla.models.action_heads.autoregressive import generate_constrained
from vla.models.action_tokenizers.fast import FastTokenizer
from vla.models.batch import IGNORE


class FastHead:
    """FAST tokens of a chunk, followed by `<eos>`.

    Decoding with a tokenizer trained by this project always yields a complete chunk. FAST encodes a chunk as a unit,
    so the action prefix is conditioning input.

    Args:
        tokenizer: the output of `to_json`.
    """

    num_ordinal_tokens, conditions_on_prefix, bidirectional, continuous = 0, True, False, None
    fixed_horizon = True
    """The tokens are of the frequencies of a chunk of one length."""

    def __init__(self, vocabulary: Vocabulary, tokenizer: Mapping[str, Any] | None = None) -> None:
        if tokenizer is None:
            raise InputError("the head fast needs a tokenizer of actions (vla train-tokenizer)")
        self.settings: Mapping[str, Any] = {"kind": "fast", "tokenizer": tokenizer}
        self.fast = from_json(tokenizer)
        self.vocab_size = self.fast.vocab_size
        # How many coefficients each token encodes: its characters. Unknown for the published tokenizer.
        ours = (tokenizer["bpe"].get("decoder") or {}).get("type") == "Fuse"
        words = [self.fast.bpe.id_to_token(i) for i in range(self.vocab_size)]
        self._sizes = torch.tensor([len(word) for word in words]) if ours else None
        self.num_action_positions = vocabulary.horizon * vocabulary.action_dim + 1
        self.text, self.eos = vocabulary.text, vocabulary.eos
        self.action_query_token = vocabulary.text + self.vocab_size

    def target(self, chunk: ChunkTarget) -> Target:
        """See `Head.target`."""
        ids = (self.text + self.fast.encode(chunk.actions)).tolist()
        return Target([self.action_query_token, *ids, self.eos], [IGNORE, *ids, self.eos])

    def action_positions(self, order: Int[Tensor, "b n"], width: Int[Tensor, "b 1"]) -> Int[Tensor, "b n"]:
        """See `Head.action_positions`."""
        return order.clamp(max=self.num_action_positions - 1)

    def decode(self, context: DecodeContext) -> Chunks:
        """See `Head.decode`."""
        robot, allowed = (
            context.robot,
            torch.arange(self.text, self.action_query_token, device=context.conditioning.device),
        )
        # A published tokenizer may use two tokens for one coefficient.
        limit = robot.action_tokens if self._sizes is not None else 2 * robot.action_tokens + 1
        tokens = generate_constrained(
            context, self.action_query_token, [[] for _ in context.conditioning], allowed, self.eos, limit, self._sizes
        )
        return [
            self.fast.decode(np.array(row, np.int64) - self.text, robot.horizon, robot.action_dim) for row in tokens
        ]


def to_json(tokenizer: FastTokenizer) -> dict[str, Any]:
    """The tokenizer as JSON values, for the settings of a `FastHead`."""
    return {
        "bpe": json.loads(tokenizer.bpe.to_str()),
        "scale": tokenizer.scale,
        "min_token": tokenizer.min_token,
        "max_token": tokenizer.max_token,
    }


def from_json(values: Mapping[str, Any]) -> FastTokenizer:
    """The inverse of `to_json`."""
    rest = {name: value for name, value in values.items() if name != "bpe"}
    return FastTokenizer(Tokenizer.from_str(json.dumps(values["bpe"])), **rest)
