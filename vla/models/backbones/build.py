"""Builds backbones from their configurations."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from vla.errors import InputError
from vla.models.backbones.backbone import Backbone
from vla.models.backbones.precision import without_dtype
from vla.models.preprocessing.earlier import without_run

FAMILIES = {
    "composed": "composed:ComposedVLM",
    "flamingo": "flamingo:CrossAttentionVLM",
    "llava": "token_family:TokenFamily",
    "pixtral": "token_family:TokenFamily",
    "internvl": "token_family:TokenFamily",
    "qwen2_vl": "token_family:TokenFamily",
    "qwen2_5_vl": "token_family:TokenFamily",
    "paligemma": "token_family:TokenFamily",
    "smolvlm": "token_family:TokenFamily",
    "blip-2": "token_family:TokenFamily",
    "qwen_vl": "qwen_vl:QwenVL",
    "molmo": "molmo:Molmo",
    "prismatic": "prismatic:Prismatic",
    "idefics": "idefics:Idefics",
    "mllama": "mllama:Mllama",
}
"""Module and class of each family, in this package."""


def build(config: Mapping[str, Any]) -> Backbone:
    """Builds the backbone of `config` with random weights.

    A dtype in the configuration is ignored (`vla.models.backbones.precision`).

    Args:
        config: "family", and the arguments of its class. Without a family, as in earlier versions, it is "composed".

    Raises:
        InputError: for an unknown family or unknown arguments.
    """
    arguments = without_run(without_dtype(config))
    family = arguments.pop("family", "composed")
    if family not in FAMILIES:
        raise InputError(f"there is no backbone family {family}: choose of {', '.join(FAMILIES)}")
    module, name = FAMILIES[family].split(":")
    try:
        return getattr(import_module(f"vla.models.backbones.{module}"), name)(**arguments)
    except TypeError as error:
        raise InputError(f"a {family} backbone does not take these arguments: {error}") from error
