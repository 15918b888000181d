"""Flow matching head whose actions attend to the prompt's hidden states (Evo-1, Lin et al. 2025, arXiv 2511.04555)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vla.errors import InputError
from vla.models.action_heads import flow
from vla.models.action_heads.action_head import Chunks, ChunkTarget, DecodeContext, LossRows, Target, Vocabulary
from vla.models.action_heads.cross_attention_flow import (
    CrossAttentionFlow,
    CrossFlowShape,
    PromptContext,
    sample_time,
    uniform_noise,
)
from vla.models.batch import Batch


class CrossFlowHead:
    """Continuous action chunks by flow matching, padded to the largest action dimension among the robots.

    The actions attend to the last hidden states of the prompt and to a token of the conditioning values. Points that
    the backbone predicts after the prompt are only conditioning values. The backbone learns no action tokens.

    Args:
        width: width of the action tokens; None: the backbone's.
        layers, heads, hidden, state_hidden, steps: as in `CrossFlowShape`.
        pooled: the actions attend to the last token of the prompt only.
    """

    vocab_size, num_ordinal_tokens, num_action_positions = 0, 0, 0
    conditions_on_prefix, reads_cache, bidirectional, fixed_horizon, guides = False, False, False, True, True

    def __init__(
        self,
        vocabulary: Vocabulary,
        width: int | None = None,
        layers: int = 8,
        heads: int = 8,
        hidden: int = 1024,
        state_hidden: int = 1024,
        steps: int = 32,
        pooled: bool = False,
    ) -> None:
        self._vocabulary, self._pooled = vocabulary, pooled
        self._sizes: dict[str, Any] = {"width": width, "layers": layers, "heads": heads, "hidden": hidden}
        self._sizes |= {"state_hidden": state_hidden, "steps": steps}
        self.settings: Mapping[str, Any] = {"kind": "cross-flow", **self._sizes, "pooled": pooled}
        self._points = torch.tensor([robot.point_tokens for robot in vocabulary.robots])

    @property
    def continuous(self) -> CrossFlowHead:
        """See `Head.continuous`."""
        return self

    def target(self, chunk: ChunkTarget) -> Target:
        """A continuous loss on every step in the episode, also in the action prefix."""
        return Target([], [], chunk.valid_mask)

    def action_positions(self, order: Int[Tensor, "b n"], width: Int[Tensor, "b 1"]) -> Int[Tensor, "b n"]:
        """See `Head.action_positions`."""
        return order

    def module(self, backbone: Any, conditioning: int) -> CrossAttentionFlow:
        """See `ContinuousHead.module`. Stores the width in `settings`."""
        if self._vocabulary.horizon < 2:
            raise InputError("the head cross-flow predicts chunks of at least 2 steps")
        self._sizes["width"] = self._sizes["width"] or backbone.hidden_size
        self.settings = {**self.settings, **self._sizes}
        shape = CrossFlowShape(context=backbone.hidden_size, **self._sizes)
        return CrossAttentionFlow(shape, self._vocabulary.horizon, self._vocabulary.action_dim, conditioning)

    def loss(self, module: CrossAttentionFlow, rows: LossRows) -> Float[Tensor, "k"]:
        """The flow matching loss, averaged over `flow.REPEATS` samples of time and noise."""
        batch = rows.batch
        ends = batch.prompt_length - self._points.to(batch.robot.device)[batch.robot]
        length = int(ends.max())
        in_prompt = torch.arange(length, device=ends.device) < ends[:, None]
        mask = batch.attention_mask[:, :length] & in_prompt
        context = self._read(PromptContext(rows.hidden[:, :length], mask, rows.conditioning)).map(flow.repeated)
        actions, valid = flow.repeated(batch.actions), flow.repeated(batch.continuous_mask)
        return flow.averaged(module.loss(actions, context, valid, _noise_and_time(batch)))

    def decode(self, context: DecodeContext) -> Chunks:
        """Chunks from fixed noise, so that a policy does not jump between equally good modes."""
        hidden = context.decoding.prompt
        mask = context.decoding.mask[:, : hidden.shape[1]]
        read = self._read(PromptContext(hidden, mask, context.conditioning))
        return flow.decode_flow(read, context, uniform_noise)

    def _read(self, context: PromptContext) -> PromptContext:
        return context.pooled() if self._pooled else context


def _noise_and_time(batch: Batch) -> tuple[Float[Tensor, "r h a"], Float[Tensor, "r"]] | None:
    """Noise and times of copies of the rows, from each row's seed; None where a row has no seed."""
    return flow.drawn_by_row(batch, uniform_noise, partial(sample_time, flow.REPEATS))
