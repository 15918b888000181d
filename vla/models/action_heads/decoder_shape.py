"""What an action expert has of the decoder that it reads: read off the decoder's configuration and its modules."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PretrainedConfig

from vla.models.action_heads.action_expert import ActionExpertShape, frequencies
from vla.models.action_heads.decoding import keys_values


def expert_shape(
    backbone: Any, width: int | None = None, heads: int | None = None, mlp_size: int | None = None, cross: bool = False
) -> ActionExpertShape:
    """The shape of an expert for this `Backbone`: the width is 3/4 of the backbone's where none is given (SmolVLA),
    `mlp_size` three times that, and it has as many query heads as the backbone (pi0, SmolVLA).

    A decoder without a rotation (OPT, GPT-2) leaves the expert Llama's, so that it tells its own tokens apart.
    Raises InputError where the numbers do not fit together.
    """
    layers, kv_heads, head_dim = _cached(backbone)
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


def shape_of_before(backbone: Any, width: int | None) -> ActionExpertShape:
    """That of a checkpoint which does not store it."""
    layers, kv_heads, head_dim = _cached(backbone)
    config = getattr(backbone.freezable_modules()["language"], "config", None)
    theta = (getattr(config, "rope_parameters", None) or {}).get("rope_theta", 10000.0)
    width = width or backbone.hidden_size * 3 // 8 * 2
    return ActionExpertShape(
        width, 3 * width, layers, kv_heads, kv_heads, head_dim, frequencies(head_dim, float(theta))
    )


@torch.no_grad()
def _cached(backbone: Any) -> tuple[int, int, int]:
    """How many layers, heads and numbers a head a backbone keeps of each token."""
    one = backbone.embed_tokens(torch.zeros(1, 1, dtype=torch.long))
    _, cache = backbone.forward(one, torch.ones(1, 1, dtype=torch.bool), backbone.new_cache())
    kept = keys_values(cache)
    return len(kept), kept[0][0].shape[1], kept[0][0].shape[3]
