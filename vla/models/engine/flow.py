"""The Euler steps of a flow, with everything that does not depend on the actions computed once.

This includes the context's keys and values, the attention mask, the rotation and the time embeddings. Shapes as in
`vla.models.action_heads.flow_matching`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from vla.models.action_heads.action_expert import ActionExpertLayer, AdaptiveNorm, ExpertContext, time_features
from vla.models.action_heads.flow_matching import FlowHead, integrate
from vla.models.engine.graphs import Graphs
from vla.models.engine.layers import FusedLayer, Rotation, Sizes, dtype_of, fused, grouped, quantize, rms_norm, signed
from vla.types import RTCPrefix

Modulation = tuple[Float[Tensor, "w"], Float[Tensor, "w"], Float[Tensor, "w"]]
"""Modulation of an adaptive norm at one time: 1 + scale, shift, and the gate of the branch after it."""


def can_fuse_expert(head: FlowHead) -> bool:
    """Whether each layer of the expert has joint attention to context and own tokens, and rotates all of each head."""
    shape = head.expert.shape
    return not shape.cross and 2 * len(shape.frequencies) == shape.head_dim


class FusedFlow(nn.Module):
    """Computes `FlowHead.sample` of a head with fused copies of its weights in `precision`; x stays in float32."""

    def __init__(self, head: FlowHead, precision: str, graphs: Graphs) -> None:
        super().__init__()
        expert, self.dtype, self.graphs = head.expert, dtype_of(precision), graphs
        self.plain, self.horizon, self.action_dim = head, head.horizon, head.action_dim
        heads = expert.shape.heads
        self.sizes = Sizes(heads, expert.kv_heads, expert.head_dim, expert.shape.eps, expert.head_dim**-0.5)
        layers: Any = expert.layers
        self.layers = nn.ModuleList(_layer(layer, self.sizes, self.dtype) for layer in layers)
        if precision in ("int8", "fp8"):
            quantize(self.layers, precision)
        self._embed_times(head)
        scale = None if expert.adaptive else expert.norm.norm.weight
        self.action_out_proj = fused([head.action_out_proj], scale, self.dtype)
        self.state = None if head.state is None else fused([head.state], dtype=self.dtype)

    @torch.no_grad()
    def _embed_times(self, head: FlowHead) -> None:
        """Computes the modulations or biases of each step's time."""
        expert, time = head.expert, head.time
        device = head.action_in_proj.weight.device
        steps = 1 - torch.arange(head.layout.steps, device=device) / head.layout.steps
        embedded = time_features(steps, expert.width)
        self.then = None
        if expert.adaptive:
            self.action_in_proj = fused([head.action_in_proj], dtype=self.dtype)
            conditions = F.silu(time(embedded))
            layers: Any = expert.layers
            norms = [norm for layer in layers for norm in (layer.before_attention, layer.before_mlp)]
            self.modulations = [_modulations(norm, conditions, self.dtype) for norm in (*norms, expert.norm)]
            return
        # W [in(x), t] + b = (W_x W_in) x + (W_x b_in + W_t t + b): the input projection is folded into the first layer.
        joint: Any = time[0]
        of_x, of_time = joint.weight[:, : expert.width], joint.weight[:, expert.width :]
        self.action_in_proj = nn.Linear(self.action_dim, expert.width, bias=False, device="meta")
        self.action_in_proj.weight = nn.Parameter(
            (of_x @ head.action_in_proj.weight).to(self.dtype), requires_grad=False
        )
        self.biases = (of_x @ head.action_in_proj.bias + embedded @ of_time.T + joint.bias).to(self.dtype)
        self.then = fused([time[2]], dtype=self.dtype)  # type: ignore[list-item]

    def sample(
        self, context: ExpertContext, noise: Float[Tensor, "b h a"], mask: Bool[Tensor, "b h a"], prefix: RTCPrefix
    ) -> Float[Tensor, "b h a"]:
        """See `FlowHead.sample`. The original head computes guidance, and prefixes with `rtc_training`."""
        if prefix.leftover is not None or (prefix.committed.shape[1] and self.plain.rtc_training):
            return self.plain.sample(context, noise, mask, prefix)
        # The keys and values are read in place, so their address is part of the key.
        keys, _ = context.keys_values[0]
        key = ("flow", keys.data_ptr(), keys.shape)

        def run(context_mask: Tensor, start: Tensor, state: Tensor, *tensors: Tensor) -> Tensor:
            return self._sample(ExpertContext(context.keys_values, context_mask, start, state), *tensors)

        # A graph takes only tensors: an empty one stands for a missing state.
        state = noise.new_zeros(len(noise), 0) if context.state is None else context.state
        sampled: Tensor = self.graphs.run(
            key, run, context.mask, context.start, state, noise.contiguous(), mask, prefix.committed
        )
        return sampled

    def _sample(
        self,
        context: ExpertContext,
        noise: Float[Tensor, "b h a"],
        mask: Bool[Tensor, "b h a"],
        committed: Float[Tensor, "b k a"],
    ) -> Float[Tensor, "b h a"]:
        first = None if self.state is None else self.state(context.state.to(self.dtype))[:, None]  # type: ignore[union-attr]
        count = self.horizon + (first is not None)
        positions = context.start[:, None] + torch.arange(count, device=noise.device)
        rotation = signed(*self.plain.expert.rotation(positions), self.dtype)
        own = _allowed(context.mask, mask.any(-1), first is not None, self.plain.layout.causal)
        allowed = grouped(own, self.sizes.shared)
        cached = [tuple(F.pad(x.to(self.dtype), (0, 0, 0, count)) for x in pair) for pair in context.keys_values]

        def velocity(x: Tensor, step: int) -> Tensor:
            tokens = self.action_in_proj(self.plain.layout.inputs(x, mask).to(self.dtype))
            if self.then is not None:
                tokens = self.then(F.silu(tokens + self.biases[step]))
            if first is not None:
                tokens = torch.cat([first, tokens], 1)
            hidden = self._expert(tokens, cached, rotation, allowed, step)
            return self.action_out_proj(hidden[:, -self.horizon :]).float()

        return integrate(velocity, noise, mask, committed, steps=self.plain.layout.steps)

    def _expert(
        self, x: Float[Tensor, "b n w"], cached: Any, rotation: Rotation, allowed: Bool[Tensor, "b 1 q k"], step: int
    ) -> Float[Tensor, "b n w"]:
        """The normalised hidden states of the expert at a step."""
        if self.then is not None:
            for layer, pair in zip(self.layers, cached, strict=True):
                x = layer(x, pair, rotation, allowed)
            return rms_norm(x, self.sizes.eps)
        for i, (layer, pair) in enumerate(zip(self.layers, cached, strict=True)):
            scale, shift, gate = self.modulations[2 * i][step]
            normed = torch.addcmul(shift, layer.norm(x), scale)  # type: ignore[operator]
            x = torch.addcmul(x, layer.attention(normed, pair, rotation, allowed), gate)  # type: ignore[operator]
            scale, shift, gate = self.modulations[2 * i + 1][step]
            x = torch.addcmul(x, layer.mlp(torch.addcmul(shift, layer.norm(x), scale)), gate)  # type: ignore[operator]
        scale, shift, _ = self.modulations[-1][step]
        return torch.addcmul(shift, rms_norm(x, self.sizes.eps), scale)


def _layer(layer: ActionExpertLayer, sizes: Sizes, dtype: torch.dtype) -> FusedLayer:
    attention, mlp = layer.before_attention.norm.weight, layer.before_mlp.norm.weight
    return FusedLayer(
        sizes,
        fused([layer.query, layer.key, layer.value], attention, dtype),
        fused([layer.out], dtype=dtype),
        fused([layer.gate, layer.up], mlp, dtype),
        fused([layer.down], dtype=dtype),
        layer.activation,
    )


def _modulations(norm: AdaptiveNorm, conditions: Float[Tensor, "s w"], dtype: torch.dtype) -> list[Modulation]:
    """The modulations of a norm at each step's time."""
    assert norm.modulation is not None
    scale, shift, gate = norm.modulation(conditions).to(dtype).chunk(3, -1)
    return list(zip(1 + scale, shift, gate, strict=True))


def _allowed(
    context_mask: Bool[Tensor, "b m"], visible: Bool[Tensor, "b h"], has_state: bool, causal: bool
) -> Bool[Tensor, "b n k"]:
    """Attention mask: actions attend to the context, the state and each other; the state to the context and itself.

    Where `causal`, actions attend to earlier ones only.
    """
    if has_state:
        visible = F.pad(visible, (1, 0), value=True)
    count = visible.shape[1]
    own = visible[:, None].repeat(1, count, 1)
    if has_state:
        own[:, 0] = False
    own = own.tril() if causal else own
    own = own | torch.eye(count, dtype=torch.bool, device=visible.device)
    return torch.cat([context_mask[:, None].expand(-1, count, -1), own], -1)
