"""Flow matching head: an action expert that reads the backbone's KV cache (pi0, Black et al. 2024, arXiv 2410.24164).

Knowledge insulation: pi0.5 + KI, Driess et al. 2025, arXiv 2505.23705.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import partial
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from vla.errors import InputError
from vla.models.action_heads.action_expert import ActionExpert, ActionExpertShape, ExpertContext
from vla.models.action_heads.action_head import Chunks, ChunkTarget, DecodeContext, LossRows, Target, Vocabulary, finite
from vla.models.action_heads.bins import BinsHead
from vla.models.action_heads.decoder_shape import expert_shape, legacy_shape
from vla.models.action_heads.decoding import keys_values
from vla.models.action_heads.fast import FastHead
from vla.models.action_heads.flow_matching import FlowHead, FlowLayout, sample_time
from vla.models.batch import Batch

REPEATS = 4
"""Samples of time and noise per row: they share one pass of the backbone, and the expert is cheap."""
Draw = Callable[..., Tensor]
"""Draws numbers with a `generator`; noise of the shape that it is given."""
normal_noise = partial(torch.randn, device="cpu")


class FlowMatchingHead:
    """Continuous action chunks by flow matching, padded to the largest action dimension among the robots.

    The conditioning values are the first token of the expert's sequence, unless `layout` says otherwise.

    Args:
        knowledge_insulation: the expert's loss has no gradient in the backbone. The backbone learns the same chunk as
            `tokens`, and the expert reads only the prompt before them: from these tokens it could read its target.
        tokens: "fast" or "bins", with knowledge insulation.
        tokenizer: of the tokens "fast".
        width, heads, mlp_size, cross: sizes of the expert (`expert_shape`).
        adaptive: time enters through the expert's adaptive norms (pi0.5), else through each action's embedding (pi0),
            which learns faster at the start.
        rtc_training: the model is trained to continue a clean action prefix (training-time real-time chunking). Other
            flows overwrite the prefix at each integration step.
        expert: the complete shape of the expert, from a checkpoint; empty for checkpoints that do not store it.
        layout: fields of `FlowLayout`, for the weights of a released policy.
    """

    reads_cache, bidirectional = True, False

    def __init__(
        self,
        vocabulary: Vocabulary,
        knowledge_insulation: bool = False,
        tokens: str = "fast",
        tokenizer: Mapping[str, Any] | None = None,
        width: int | None = None,
        adaptive: bool = False,
        rtc_training: bool = False,
        heads: int | None = None,
        mlp_size: int | None = None,
        cross: bool = False,
        expert: Mapping[str, Any] | None = None,
        layout: Mapping[str, Any] | None = None,
    ) -> None:
        settings: dict[str, Any] = {"kind": "flow", "knowledge_insulation": knowledge_insulation, "adaptive": adaptive}
        settings |= {"rtc_training": True} if rtc_training else {}
        self._rtc_training, self._expert = rtc_training, expert
        self._sizes: dict[str, Any] = {"width": width, "heads": heads, "mlp_size": mlp_size, "cross": cross}
        settings |= self._sizes if not expert else {}
        settings |= {"expert": expert} if expert is not None else {}
        settings |= {"layout": dict(layout)} if layout else {}
        self._layout = FlowLayout(**layout or {})
        self._knowledge_insulation, self._adaptive, self._vocabulary = knowledge_insulation, adaptive, vocabulary
        self._tokens: BinsHead | FastHead | None = None
        if knowledge_insulation:
            if tokens not in ("fast", "bins"):
                raise InputError(f"the backbone of an insulated flow learns tokens fast or bins, not {tokens}")
            self._tokens = FastHead(vocabulary, tokenizer) if tokens == "fast" else BinsHead(vocabulary)
            settings |= {"tokens": tokens} | ({"tokenizer": tokenizer} if tokens == "fast" else {})
        self.settings: Mapping[str, Any] = settings
        head = self._tokens
        self.vocab_size, self.num_ordinal_tokens, self.num_action_positions = (
            (head.vocab_size, head.num_ordinal_tokens, head.num_action_positions) if head else (0, 0, 0)
        )
        self.conditions_on_prefix = head is not None and head.conditions_on_prefix

    @property
    def continuous(self) -> FlowMatchingHead:
        """See `Head.continuous`."""
        return self

    def target(self, chunk: ChunkTarget) -> Target:
        """The token target, if any, and a continuous loss on every step in the episode.

        The action prefix has a loss too, except with `rtc_training`.
        """
        tokens = Target([], []) if self._tokens is None else self._tokens.target(chunk)
        return Target(tokens.inputs, tokens.labels, chunk.valid_mask)

    def action_positions(self, order: Int[Tensor, "b n"], width: Int[Tensor, "b 1"]) -> Int[Tensor, "b n"]:
        """See `Head.action_positions`."""
        return order if self._tokens is None else self._tokens.action_positions(order, width)

    @property
    def fixed_horizon(self) -> bool:
        """Whether the weights depend on the horizon: only through FAST tokens."""
        return isinstance(self._tokens, FastHead)

    def module(self, backbone: Any, conditioning: int) -> FlowHead:
        """Builds the expert for this backbone, and stores its shape in `settings`."""
        if self._expert is None:
            shape = expert_shape(backbone, **self._sizes)
            self._expert = asdict(shape) | {"frequencies": list(shape.frequencies)}  # JSON has no tuples
            self.settings = {k: v for k, v in self.settings.items() if k not in self._sizes} | {"expert": self._expert}
        elif self._expert:
            shape = ActionExpertShape(**{**self._expert, "frequencies": tuple(self._expert["frequencies"])})
        else:
            shape = legacy_shape(backbone, self._sizes["width"])
        expert = ActionExpert(shape, self._adaptive)
        vocabulary, width = self._vocabulary, conditioning if self._layout.state_token else 0
        return FlowHead(expert, vocabulary.horizon, vocabulary.action_dim, width, self._rtc_training, self._layout)

    def _placed(self, context: ExpertContext) -> ExpertContext:
        """The context of this expert; in legacy checkpoints its positions count only valid tokens."""
        context = context if self._layout.state_token else replace(context, state=None)
        return context if self._expert else replace(context, start=context.mask.sum(1))

    def loss(self, module: FlowHead, rows: LossRows) -> Float[Tensor, "k"]:
        """The flow matching loss, averaged over `REPEATS` samples of time and noise."""
        assert rows.context is not None
        batch, context = rows.batch, self._placed(rows.context).map(repeated)
        if self._knowledge_insulation:
            context = context.map(Tensor.detach)
        actions, mask, prefix_length = map(repeated, (batch.actions, batch.continuous_mask, batch.prefix_length))
        losses = module.loss(actions, context, mask, _noise_and_time(batch), prefix_length)
        return averaged(losses)

    def decode(self, context: DecodeContext) -> Chunks:
        """Chunks from fixed noise, so that a policy does not jump between equally good modes."""
        decoding = context.decoding
        layers, start = keys_values(decoding.cache), decoding.next_position()
        return decode_flow(self._placed(ExpertContext(layers, decoding.mask, start, context.conditioning)), context)


def decode_flow(flow_context: Any, context: DecodeContext, draw: Draw = normal_noise) -> Chunks:
    """Chunks from fixed noise, by the `sample` of the head's module.

    Args:
        flow_context: what the module reads besides the noisy actions; its `map` converts each of its tensors.
        draw: draws the noise.
    """
    prefix = context.prefix
    if prefix.leftover is None or prefix.guidance_mode == "identity":
        return _sample(flow_context, context, draw)
    with torch.inference_mode(False):
        # Inference tensors cannot have gradients; copies made outside inference mode can.
        return _sample(flow_context.map(torch.clone), context, draw)


def _sample(flow_context: Any, context: DecodeContext, draw: Draw) -> Chunks:
    """The chunks of one noise, with the prefix padded to the largest action dimension."""
    robot, module = context.robot, cast(Any, context.module)
    count, device = len(context.conditioning), context.conditioning.device
    mask = (torch.arange(module.action_dim, device=device) < robot.action_dim).expand(count, robot.horizon, -1)
    width = robot.padded_dim or module.action_dim
    drawn = draw((robot.horizon, width), generator=torch.Generator().manual_seed(0))
    drawn = F.pad(drawn, (0, module.action_dim - width))

    def padded(actions: Float[np.ndarray, "b k _"]) -> Float[Tensor, "b k a"]:
        padding = ((0, 0), (0, 0), (0, module.action_dim - robot.action_dim))
        return torch.from_numpy(np.pad(actions, padding)).to(device, torch.float32)

    noise = drawn.to(device).expand(mask.shape)
    chunks = module.sample(flow_context, noise, mask, context.prefix.map(padded))
    return finite(chunks[..., : robot.action_dim])


def _noise_and_time(batch: Batch) -> tuple[Float[Tensor, "r h a"], Float[Tensor, "r"]] | None:
    """Noise and times of `REPEATS` copies of the rows, from each row's seed; None where a row has no seed."""
    return drawn_by_row(batch, normal_noise, partial(sample_time, REPEATS, "cpu"))


def drawn_by_row(batch: Batch, noise: Draw, time: Draw) -> tuple[Float[Tensor, "r h a"], Float[Tensor, "r"]] | None:
    """Noise and `REPEATS` times, drawn from each row's seed for `REPEATS` copies of the rows; None without seeds."""
    if (batch.seed < 0).any():
        return None
    shape, device = (REPEATS, *batch.actions.shape[1:]), batch.actions.device
    generators = [torch.Generator().manual_seed(seed) for seed in batch.seed.tolist()]
    noises = torch.stack([noise(shape, generator=generator) for generator in generators], 1)
    times = torch.stack([time(generator=generator) for generator in generators], 1)
    return noises.flatten(0, 1).to(device), times.flatten().to(device)


def repeated(x: Shaped[Tensor, "b ..."]) -> Shaped[Tensor, "r ..."]:
    """The batch concatenated `REPEATS` times."""
    return x.repeat(REPEATS, *[1] * (x.ndim - 1))


def averaged(losses: Float[Tensor, "rk"]) -> Float[Tensor, "k"]:
    """The mean over the `REPEATS` copies of each value's loss."""
    return losses.unflatten(0, (REPEATS, -1)).mean(0)
