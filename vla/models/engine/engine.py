"""Accelerated inference: the same chunks as the model's, computed faster."""

from __future__ import annotations

import copy
from dataclasses import replace
from threading import Lock
from typing import Any

import numpy as np
import torch.nn.functional as F
from jaxtyping import Float

from vla.models.action_heads.action_head import Chunks
from vla.models.action_heads.flow_matching import FlowHead
from vla.models.batch import Batch
from vla.models.engine.backbone import FusedBackbone, decoder_of
from vla.models.engine.flow import FusedFlow, can_fuse_expert
from vla.models.engine.graphs import Graphs
from vla.models.engine.layers import dtype_of
from vla.models.vla import VLA
from vla.types import RTCPrefix

LENGTH_MULTIPLE = 32
"""On CUDA, prompts are padded to a multiple of this many tokens, since each length has its own graphs."""


class Engine:
    """Computes `VLA.generate_actions` of `model` with fused copies of its weights, created on construction.

    Prefill and decoding run on `FusedBackbone`, a flow head on `FusedFlow`. A backbone whose language model cannot be
    fused is used unchanged, in float32. On CUDA, vision, prefill, each decoding step and the complete flow are one
    CUDA graph each. Concurrent calls are serialised, since they share one KV cache.

    Args:
        precision: with "float32" the chunks equal the model's up to rounding (1e-4 of a normalised action). "bfloat16"
            rounds weights and activations; "int8" and "fp8" further quantise the weights of decoder and expert.

    Raises:
        InputError: for an unknown precision.
    """

    def __init__(self, model: VLA, precision: str = "float32") -> None:
        dtype_of(precision)
        self.model, self.graphs, self._lock = model.eval(), Graphs(), Lock()
        # A shallow copy, so that replacing modules does not change the model.
        self._fast = copy.copy(model)
        self._fast._modules = dict(model._modules)
        # A fused decoder reads a prompt of one segment; SmolVLA's last token, the state, is a segment of its own.
        decoder = None if model.processor.state_in_prompt else decoder_of(model.backbone)
        self.fuses = decoder is not None
        fast: Any = self._fast
        if decoder is not None:
            fast.backbone = FusedBackbone(model.backbone, decoder, precision, self.graphs).eval()
            continuous_head = getattr(model, "continuous_head", None)
            if isinstance(continuous_head, FlowHead) and can_fuse_expert(continuous_head):
                fast.continuous_head = FusedFlow(continuous_head, precision, self.graphs).eval()

    @property
    def backbone(self) -> Any:
        """The fused backbone, or the model's where it cannot be fused."""
        return self._fast.backbone

    def generate_actions(
        self, batch: Batch, prefix: RTCPrefix | None = None
    ) -> tuple[Chunks, Float[np.ndarray, "b p 2"]]:
        """See `VLA.generate_actions`."""
        with self._lock:
            if self.fuses and self.model.device.type == "cuda":
                batch = padded(batch, LENGTH_MULTIPLE, self.model.processor.pad)
                batch = batch.map_tensors(lambda tensor: tensor.pin_memory(), batch.source)
            return self._fast.generate_actions(batch, prefix)


def padded(batch: Batch, step: int, pad: int) -> Batch:
    """Rows padded on the left to a multiple of `step` tokens."""
    extra = -batch.input_ids.shape[1] % step
    ids = F.pad(batch.input_ids, (extra, 0), value=pad)
    names = ("attention_mask", "labels", "segments")
    rest: dict[str, Any] = {name: F.pad(getattr(batch, name), (extra, 0)) for name in names}
    return replace(batch, input_ids=ids, **rest)
