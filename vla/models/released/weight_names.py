"""Names of the weights outside the backbone, in the files of released policies and in `VLA`."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from vla.errors import InputError

LAYER = {
    "self_attn.q_proj.weight": "query.weight",
    "self_attn.k_proj.weight": "key.weight",
    "self_attn.v_proj.weight": "value.weight",
    "self_attn.o_proj.weight": "out.weight",
    "mlp.gate_proj.weight": "gate.weight",
    "mlp.up_proj.weight": "up.weight",
    "mlp.down_proj.weight": "down.weight",
}
NORMS = {"input_layernorm": "before_attention", "post_attention_layernorm": "before_mlp"}
OURS = "continuous_head."


def expert_names(prefix: str, layers: int, adaptive: bool) -> dict[str, str]:
    """Our name of each weight of an action expert, whose modules are those of Gemma or Llama below `prefix`."""
    kinds = ("modulation.weight", "modulation.bias") if adaptive else ("norm.weight",)
    theirs = ("dense.weight", "dense.bias") if adaptive else ("weight",)
    names: dict[str, str] = {}
    for i in range(layers):
        names |= {f"{prefix}layers.{i}.{name}": f"{OURS}expert.layers.{i}.{ours}" for name, ours in LAYER.items()}
        for norm, ours in NORMS.items():
            for theirs_kind, kind in zip(theirs, kinds, strict=True):
                names[f"{prefix}layers.{i}.{norm}.{theirs_kind}"] = f"{OURS}expert.layers.{i}.{ours}.{kind}"
    for theirs_kind, kind in zip(theirs, kinds, strict=True):
        names[f"{prefix}norm.{theirs_kind}"] = f"{OURS}expert.norm.{kind}"
    return names


def linear_names(modules: Mapping[str, str]) -> dict[str, str]:
    """Our names of the weights and biases of linear layers."""
    return {f"{theirs}.{kind}": f"{ours}.{kind}" for theirs, ours in modules.items() for kind in ("weight", "bias")}


def renamed(weights: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """The weights with other names, in float32. Raises InputError for a missing and for an unknown one."""
    if differing := sorted(weights.keys() ^ names.keys()):
        raise InputError(f"{differing[0]} is only in the policy's weights or only in its architecture")
    return {names[name]: weight.to(torch.float32) for name, weight in weights.items()}


def shifted_norms(weights: Mapping[str, Tensor], shift: float) -> dict[str, Tensor]:
    """The weights, with `shift` added to those of norms: Gemma stores them minus 1."""
    return {name: weight + shift if name.endswith(".norm.weight") else weight for name, weight in weights.items()}
