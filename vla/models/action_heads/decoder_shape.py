"""The shape of an action expert, derived from the configuration and modules of the decoder that it reads."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PretrainedConfig

from vla.models.action_heads.action_expert import ActionExpertShape, frequencies
from vla.models.action_heads.decoding import keys_values
from vla.models.backbone_inputs import DecoderInput


def expert_shape(
    backbone: Any, width: int | None = None, heads: int | None = None, mlp_size: int | None = None, cross: bool = False
) -> ActionExpertShape:
    """The shape of an expert for this `Backbone`.

    For a decoder without a rotary embedding (OPT, GPT-2) the expert uses Llama's, to distinguish its tokens.

    Args:
        width: by default 3/4 of the backbone's (SmolVLA).
        heads: query heads, by default as many as the backbone's (pi0, SmolVLA).
        mlp_size: by default three times the width.

    Raises:
        InputError: for sizes that are inconsistent.
    """
    layers, kv_heads, head_dim = _cache_shape(backbone)
    language: Any = backbone.freezable_modules()["language"]
    config = next(m.config for m in language.modules() if isinstance(getattr(m, "config", None), PretrainedConfig))
    rotary: Any = next((m for m in language.modules() if hasattr(m, "inv_freq")), None)
    width = width or backbone.hidden_size * 3 // 8 * 2
    activation = getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", None)
    return ActionExpertShape(
        width=width,
        mlp_size=mlp_size or 3 * width,
        layers=layers,
        heads=heads or int(config.num_attention_heads),
        kv_heads=kv_heads,
        head_dim=head_dim,
        frequencies=frequencies(head_dim) if rotary is None else tuple(rotary.inv_freq.tolist()),
        scaling=float(getattr(rotary, "attention_scaling", 1.0)),
        activation=activation or ActionExpertShape.activation,
        eps=float(getattr(config, "rms_norm_eps", ActionExpertShape.eps)),
        cross=cross,
    )


def legacy_shape(backbone: Any, width: int | None) -> ActionExpertShape:
    """The expert's shape for checkpoints that do not store it."""
    layers, kv_heads, head_dim = _cache_shape(backbone)
    config = getattr(backbone.freezable_modules()["language"], "config", None)
    theta = (getattr(config, "rope_parameters", None) or {}).get("rope_theta", 10000.0)
    width = width or backbone.hidden_size * 3 // 8 * 2
    return ActionExpertShape(
        width, 3 * width, layers, kv_heads, kv_heads, head_dim, frequencies(head_dim, float(theta))
    )


@torch.no_grad()
def _cache_shape(backbone: Any) -> tuple[int, int, int]:
    """Number of layers, heads and components per head that a backbone caches of each token."""
    token = backbone.embed_tokens(torch.zeros(1, 1, dtype=torch.long))
    _, cache = backbone.forward(DecoderInput(token, torch.ones(1, 1, dtype=torch.bool), backbone.new_cache()))
    layers = keys_values(cache)
    return len(layers), layers[0][0].shape[1], layers[0][0].shape[3]
