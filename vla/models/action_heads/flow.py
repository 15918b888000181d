"""Numbers that an expert of its own moves to from noise, reading what the backbone cached (pi0, Black et al. 2024,
arXiv 2410.24164); insulated: pi0.5 + KI, Driess et al. 2025, arXiv 2505.23705."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from vla.errors import InputError
from vla.models.action_heads.action_expert import ActionExpert, ActionExpertShape
from vla.models.action_heads.action_head import (
    Cached,
    Chunks,
    ContinuousHead,
    DecodeContext,
    Target,
    Vocabulary,
    finite,
)
from vla.models.action_heads.bins import BinsHead
from vla.models.action_heads.decoder_shape import expert_shape, shape_of_before
from vla.models.action_heads.decoding import keys_values
from vla.models.action_heads.fast import FastHead
from vla.models.action_heads.flow_matching import FlowHead, sample_time
from vla.models.action_heads.rtc_guidance import RTCGuidance
from vla.models.batch import Batch
from vla.models.robot_spec import RobotSpec

REPEATS = 4
"""Times and noises a row: the expert costs little beside the backbone, whose pass they share."""


class FlowMatchingHead:
    """The numbers that a model is told are the suffix's first token; actions are those of the widest robot.

    `knowledge_insulation`: the expert's loss does not reach the backbone, which learns to say the same chunk in `tokens` ("fast",
    with its `tokenizer`, or "bins"); the expert reads what comes before them. `width`, `heads`, `mlp_size` and `cross`
    are the expert's (`expert_shape`), or `expert` is all of its shape: that of a checkpoint, empty in one that was made
    before shapes were stored. `adaptive`: time enters through the expert's norms (pi0.5); if not, into
    each action (pi0), which learns faster at the start. `rtc_training`: it learns to go on from actions under way that
    it is told as they are (training-time real-time chunking), where other flows are put right at each step.
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
    ) -> None:
        settings: dict[str, Any] = {"kind": "flow", "knowledge_insulation": knowledge_insulation, "adaptive": adaptive}
        settings |= {"rtc_training": True} if rtc_training else {}
        self._rtc_training, self._expert = rtc_training, expert
        self._sizes: dict[str, Any] = {"width": width, "heads": heads, "mlp_size": mlp_size, "cross": cross}
        settings |= self._sizes if not expert else {}
        settings |= {"expert": expert} if expert is not None else {}
        self._knowledge_insulation, self._adaptive, self._vocabulary = knowledge_insulation, adaptive, vocabulary
        self._tokens: BinsHead | FastHead | None = None
        if knowledge_insulation:
            if tokens not in ("fast", "bins"):
                raise InputError(f"the backbone of an insulated flow learns tokens fast or bins, not {tokens}")
            self._tokens = FastHead(vocabulary, tokenizer) if tokens == "fast" else BinsHead(vocabulary)
            settings |= {"tokens": tokens} | ({"tokenizer": tokenizer} if tokens == "fast" else {})
        self.settings: Mapping[str, Any] = settings
        said = self._tokens
        self.rows, self.num_ordinal_tokens, self.num_action_positions = (
            (said.rows, said.num_ordinal_tokens, said.num_action_positions) if said else (0, 0, 0)
        )
        self.conditions_on_prefix = said is not None and said.conditions_on_prefix

    @property
    def continuous(self) -> ContinuousHead:
        return self

    def target(
        self,
        robot: RobotSpec,
        actions: Float[np.ndarray, "h a"],
        valid_mask: Bool[np.ndarray, "h"],
        prefix_length: int,
        rng: np.random.Generator | None,
    ) -> Target:
        """Actions under way are learned like the others, but where the head `rtc_training`."""
        said = (
            Target([], [])
            if self._tokens is None
            else self._tokens.target(robot, actions, valid_mask, prefix_length, rng)
        )
        return Target(said.inputs, said.labels, valid_mask)

    def action_positions(self, order: Int[Tensor, "b n"], width: Int[Tensor, "b 1"]) -> Int[Tensor, "b n"]:
        return order if self._tokens is None else self._tokens.action_positions(order, width)

    def module(self, backbone: Any, conditioning: int) -> FlowHead:
        """An expert for this backbone, whose shape the settings then tell."""
        if self._expert is None:
            shape = expert_shape(backbone, **self._sizes)
            self._expert = asdict(shape) | {"frequencies": list(shape.frequencies)}  # as JSON has it
            self.settings = {k: v for k, v in self.settings.items() if k not in self._sizes} | {"expert": self._expert}
        elif self._expert:
            shape = ActionExpertShape(**{**self._expert, "frequencies": tuple(self._expert["frequencies"])})
        else:
            shape = shape_of_before(backbone, self._sizes["width"])
        expert = ActionExpert(shape, self._adaptive)
        return FlowHead(expert, self._vocabulary.horizon, self._vocabulary.action_dim, conditioning, self._rtc_training)

    def _start(self, position: Int[Tensor, "b"]) -> Int[Tensor, "b"] | None:
        """Where the expert's positions begin: where the backbone's end, but in checkpoints of before."""
        return position if self._expert else None

    def loss(
        self,
        module: FlowHead,
        batch: Batch,
        hidden: Float[Tensor, "b l d"],
        conditioning: Float[Tensor, "b n"],
        cached: Cached | None,
    ) -> Float[Tensor, "k"]:
        """The mean over `REPEATS` times and noises."""
        assert cached is not None
        length = int(batch.prompt_length.max())
        before = torch.arange(length, device=batch.prompt_length.device) < batch.prompt_length[:, None]
        prefix = [(_repeated(keys[:, :, :length]), _repeated(values[:, :, :length])) for keys, values in cached.layers]
        actions, before, mask, conditioning = (
            _repeated(x) for x in (batch.actions, before, batch.continuous_mask, conditioning)
        )
        action_prefix, start = _repeated(batch.prefix_length), self._start(_repeated(cached.next_position))
        losses = module.loss(
            actions,
            prefix,
            before,
            mask,
            conditioning,
            self._knowledge_insulation,
            _noise_and_times(batch),
            action_prefix,
            start,
        )
        return losses.unflatten(0, (REPEATS, -1)).mean(0)

    def decode(self, context: DecodeContext) -> Chunks:
        """From the same noise each time: a policy's chunks do not jump between ways that are equally good."""
        robot, rows, module, device = (
            context.robot,
            len(context.conditioning),
            cast(FlowHead, context.module),
            context.conditioning.device,
        )
        mask = (torch.arange(module.action_dim, device=device) < robot.action_dim).expand(rows, robot.horizon, -1)
        drawn = torch.randn(mask.shape[1:], device="cpu", generator=torch.Generator().manual_seed(0))
        noise = drawn.to(device).expand(mask.shape)

        def wide(actions: Float[np.ndarray, "b k _"]) -> Float[Tensor, "b k a"]:
            padding = ((0, 0), (0, 0), (0, module.action_dim - robot.action_dim))
            return torch.from_numpy(np.pad(actions, padding)).to(device, torch.float32)

        action_prefix = None if context.action_prefix is None else wide(context.action_prefix)
        cached, before, conditioning = keys_values(context.decoding.cache), context.decoding.mask, context.conditioning
        start = self._start(context.decoding.next_position())
        if context.previous_chunk_leftover is None or not context.vjp:
            guide = (
                None
                if context.previous_chunk_leftover is None
                else RTCGuidance(wide(context.previous_chunk_leftover), False)
            )
            chunks = module.sample(cached, before, mask, conditioning, action_prefix, noise, guide, start)
            return finite(chunks[..., : robot.action_dim])
        with torch.inference_mode(False):
            # Tensors of inference mode have no gradients; copies that are made outside of it may have.
            cached = [(keys.clone(), values.clone()) for keys, values in cached]
            action_prefix = None if context.action_prefix is None else wide(context.action_prefix)
            guide, fresh = (
                RTCGuidance(wide(context.previous_chunk_leftover), True),
                [x.clone() for x in (before, mask, conditioning, noise)],
            )
            start = None if start is None else start.clone()
            chunks = module.sample(cached, fresh[0], fresh[1], fresh[2], action_prefix, fresh[3], guide, start)
            return finite(chunks[..., : robot.action_dim])


def _noise_and_times(batch: Batch) -> tuple[Float[Tensor, "r h a"], Float[Tensor, "r"]] | None:
    """The noise and the times of `REPEATS` copies of the rows, as each row's seed says; None where one has no seed."""
    if (batch.seed < 0).any():
        return None
    shape, device = (REPEATS, *batch.actions.shape[1:]), batch.actions.device
    own = [torch.Generator().manual_seed(seed) for seed in batch.seed.tolist()]
    noise = torch.stack([torch.randn(shape, device="cpu", generator=generator) for generator in own], 1)
    time = torch.stack([sample_time(REPEATS, "cpu", generator) for generator in own], 1)
    return noise.flatten(0, 1).to(device), time.flatten().to(device)


def _repeated(x: Shaped[Tensor, "b ..."]) -> Shaped[Tensor, "r ..."]:
    """The rows one after the other, `REPEATS` times."""
    return x.repeat(REPEATS, *[1] * (x.ndim - 1))
