"""Autoregressive FAST tokens (pi0-FAST: Pertsch et al. 2025, arXiv 2501.09747)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True)
class FastLayout:
    """How a released policy writes FAST tokens: with tokens of its text vocabulary (pi0-FAST).

    Attributes:
        last: text token that is FAST token 0; FAST token k is `last - k`.
        begin: text tokens that begin a chunk, without a loss. In decoding they end the prompt, whose tokens attend to
            them, as in LeRobot.
        opening: text tokens before the FAST tokens ("Action: ").
        end: text tokens after them; the first ends decoding.
        max_tokens: number of text tokens of a chunk in training, which is cut there.
    """

    last: int
    begin: Sequence[int]
    opening: Sequence[int]
    end: Sequence[int]
    max_tokens: int


class FastHead:
    """FAST tokens of a chunk, followed by `<eos>`.

    Decoding with a tokenizer trained by this project always yields a complete chunk. FAST encodes a chunk as a unit,
    so the action prefix is conditioning input.

    Args:
        tokenizer: the output of `to_json`.
        layout: `FastLayout`'s fields, for the tokens of a released policy. The model then has no tokens, embeddings or
            conditioning values beside the policy's own, and takes no action prefix.
    """

    num_ordinal_tokens, bidirectional, continuous = 0, False, None
    fixed_horizon = True
    """The tokens are of the frequencies of a chunk of one length."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        tokenizer: Mapping[str, Any] | None = None,
        layout: Mapping[str, Any] | None = None,
    ) -> None:
        if tokenizer is None:
            raise InputError("the head fast needs a tokenizer of actions (vla train-tokenizer)")
        self.settings: Mapping[str, Any] = {"kind": "fast", "tokenizer": tokenizer}
        self.fast = from_json(tokenizer)
        # How many coefficients each token encodes: its characters. Unknown for the published tokenizer.
        ours = (tokenizer["bpe"].get("decoder") or {}).get("type") == "Fuse"
        words = [self.fast.bpe.id_to_token(i) for i in range(self.fast.vocab_size)]
        self._sizes = torch.tensor([len(word) for word in words]) if ours else None
        self.layout = FastLayout(**layout) if layout else None
        self.takes_prefix = self.conditions_on_prefix = self.layout is None
        self.vocab_size, self.num_action_positions = 0, 0
        if self.layout is None:
            self.vocab_size = self.fast.vocab_size
            self.num_action_positions = vocabulary.horizon * vocabulary.action_dim + 1
        else:
            self.settings = {**self.settings, "layout": dict(layout or {})}
            if self.fast.vocab_size > self.layout.last:
                raise InputError(
                    f"the action tokenizer has {self.fast.vocab_size} tokens, more than the policy's vocabulary"
                )
        self._first, self._step = (vocabulary.text, 1) if self.layout is None else (self.layout.last, -1)
        self.eos = vocabulary.eos
        self.action_query_token = vocabulary.text + self.vocab_size

    @property
    def begin(self) -> list[int]:
        """The tokens that end a prompt in decoding."""
        return [] if self.layout is None else list(self.layout.begin)

    @property
    def longest(self) -> int | None:
        """Largest number of FAST tokens of a chunk in training; None: any."""
        layout = self.layout
        fixed = () if layout is None else (*layout.begin, *layout.opening, *layout.end)
        return None if layout is None else max(0, layout.max_tokens - len(fixed))

    def target(self, chunk: ChunkTarget) -> Target:
        """See `Head.target`."""
        ids = (self._first + self._step * self.fast.encode(chunk.actions)).tolist()
        if self.layout is None:
            return Target([self.action_query_token, *ids, self.eos], [IGNORE, *ids, self.eos])
        learned = [*self.layout.opening, *ids, *self.layout.end]
        cut, unlearned = self.layout.max_tokens, [IGNORE] * len(self.begin)
        return Target([*self.begin, *learned][:cut], [*unlearned, *learned][:cut])

    def action_positions(self, order: Int[Tensor, "b n"], width: Int[Tensor, "b 1"]) -> Int[Tensor, "b n"]:
        """See `Head.action_positions`."""
        return order.clamp(max=self.num_action_positions - 1)

    def decode(self, context: DecodeContext) -> Chunks:
        """See `Head.decode`."""
        robot, known, end = context.robot, [self.action_query_token], self.eos
        if self.layout is not None:
            known, end = list(self.layout.opening), self.layout.end[0]
        start, *rest = known
        allowed = self._first + self._step * torch.arange(self.fast.vocab_size, device=context.conditioning.device)
        limit = robot.action_tokens
        if self._sizes is None:  # a published tokenizer may use two tokens for one coefficient
            longest = 2 * limit if self.longest is None else min(2 * limit, self.longest)
            limit = len(rest) + longest + 1
        rows = generate_constrained(
            context, start, [rest for _ in context.conditioning], allowed, end, limit, self._sizes
        )
        tokens = [self._step * (np.array(row[len(rest) :], np.int64) - self._first) for row in rows]
        return [self.fast.decode(row, robot.horizon, robot.action_dim) for row in tokens]


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
