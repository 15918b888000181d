"""A VLA that gives the same chunks faster."""

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

STEP = 32
"""Prompts are padded to a multiple of so many tokens on CUDA, where each length has graphs of its own."""


class Engine:
    """`VLA.generate_actions` of `model`, with fused weights of its own, made when it is built.

    Prefill and decoding run on `FusedBackbone`, a flow on `FusedFlow`; a family of backbones whose language model is
    none that can be fused keeps its own, in float32. On CUDA vision, prefill, each decoded token and the whole flow are
    a CUDA graph each. Calls from several threads wait for each other: keys and values lie in one place.

    In float32 the chunks are those of the model up to rounding (1e-4 of a normalised action). `precision`
    "bfloat16" rounds weights and activations, "int8" and "fp8" the decoder's and the expert's weights further.
    Raises InputError for another precision.
    """

    def __init__(self, model: VLA, precision: str = "float32") -> None:
        dtype_of(precision)
        self.model, self.graphs, self._lock = model.eval(), Graphs(), Lock()
        # The same modules but for those that are replaced: nothing of the model changes.
        self._fast = copy.copy(model)
        self._fast._modules = dict(model._modules)
        decoder = decoder_of(model.backbone)
        self.fuses = decoder is not None
        fast: Any = self._fast
        if decoder is not None:
            fast.backbone = FusedBackbone(model.backbone, decoder, precision, self.graphs).eval()
            continuous_head = getattr(model, "continuous_head", None)
            if isinstance(continuous_head, FlowHead) and can_fuse_expert(continuous_head):
                fast.continuous_head = FusedFlow(continuous_head, precision, self.graphs).eval()

    @property
    def backbone(self) -> Any:
        """What sees and decodes: the model's own, where that cannot be fused."""
        return self._fast.backbone

    def generate_actions(
        self, batch: Batch, action_prefix: Float[np.ndarray, "b k a"] | None = None, **more: Any
    ) -> tuple[Chunks, Float[np.ndarray, "b p 2"]]:
        """See `VLA.generate_actions`; `more` that is asked of it is handed on."""
        with self._lock:
            if self.fuses and self.model.device.type == "cuda":
                batch = padded(batch, STEP, self.model.processor.pad)
                batch = batch.each(lambda tensor: tensor.pin_memory(), batch.source)
            return self._fast.generate_actions(batch, action_prefix, **more)


def padded(batch: Batch, step: int, pad: int) -> Batch:
    """Rows padded on the left to a multiple of `step` tokens."""
    more = -batch.input_ids.shape[1] % step
    ids = F.pad(batch.input_ids, (more, 0), value=pad)
    names = ("attention_mask", "labels", "segments")
    rest: dict[str, Any] = {name: F.pad(getattr(batch, name), (more, 0)) for name in names}
    return replace(batch, input_ids=ids, **rest)
