"""Released weights under other names than transformers': MiniGPT-4's. InternVL's are in `internvl`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Blip2Config,
    Blip2ForConditionalGeneration,
    PreTrainedModel,
)

from vla.errors import InputError

Names = Sequence[tuple[str, str]]

EVA_LAYER, BLIP_LAYER = r"^visual_encoder\.blocks\.(\d+)\.", r"vision_model.encoder.layers.\1."
MINIGPT4: Names = (
    (r"^visual_encoder\.cls_token$", "vision_model.embeddings.class_embedding"),
    (r"^visual_encoder\.pos_embed$", "vision_model.embeddings.position_embedding"),
    (r"^visual_encoder\.patch_embed\.proj\.", "vision_model.embeddings.patch_embedding."),
    (EVA_LAYER + r"norm(\d)\.", BLIP_LAYER + r"layer_norm\2."),
    (EVA_LAYER + r"attn\.proj\.", BLIP_LAYER + "self_attn.projection."),
    (EVA_LAYER + r"attn\.", BLIP_LAYER + "self_attn."),
    (EVA_LAYER, BLIP_LAYER),
    (r"^ln_vision\.", "vision_model.post_layernorm."),
    (r"^Qformer\.bert\.embeddings\.LayerNorm\.", "qformer.layernorm."),
    (r"^Qformer\.bert\.(.*attention)\.self\.", r"qformer.\1.attention."),
    (r"^Qformer\.bert\.", "qformer."),
    (r"^llama_proj\.", "language_projection."),
    (r"^llama_model\.", "language_model."),
)
"""Its own names, and those of EVA-CLIP and BLIP-2 in it, to those of transformers' BLIP-2; the first that matches."""


def minigpt4(weights: Mapping[str, Tensor], config: Blip2Config) -> Blip2ForConditionalGeneration:
    """Builds MiniGPT-4 from all its `weights`: ViT, Q-Former, `llama_proj` and Vicuna (`llama_model.`).

    The attention biases of queries and values are joined, with zeros for the keys.

    Raises:
        InputError: when a weight of the model is missing.
    """
    biased = dict(weights)
    for name in [name for name in weights if name.endswith(".attn.q_bias")]:
        query, value = biased.pop(name), biased.pop(name.replace("q_bias", "v_bias"))
        biased[name.replace("q_bias", "qkv.bias")] = torch.cat([query, torch.zeros_like(query), value])
    return filled(Blip2ForConditionalGeneration(config), renamed(biased, MINIGPT4))


def convert_minigpt4(own: Path, blip2: Path, eva: Path, vicuna: str | Path, folder: Path) -> None:
    """Converts MiniGPT-4's released files to a checkpoint in `folder` for `vla.models.backbones.families.load`.

    A token "<image>" is appended to the tokenizer.

    Args:
        own: file of the projection.
        blip2: file of the Q-Former and its queries.
        eva: file of the ViT.
        vicuna: a checkpoint of transformers.

    Raises:
        InputError: when a weight is missing.
    """
    files = [torch.load(file, map_location="cpu", weights_only=True) for file in (eva, blip2, own)]
    vision, *others = [content.get("model", content) for content in files]
    language: Any = AutoModelForCausalLM.from_pretrained(vicuna, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(vicuna)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    language.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    weights = {f"visual_encoder.{name}": weight for name, weight in vision.items()}
    for content in others:
        weights |= content
    weights |= {f"llama_model.{name}": weight for name, weight in language.state_dict().items()}
    made: Any = Blip2Config
    config = made(
        text_config=language.config.to_dict(),
        num_query_tokens=weights["query_tokens"].shape[1],
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    model = minigpt4(weights, config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def renamed(weights: Mapping[str, Tensor], names: Names) -> dict[str, Tensor]:
    """All weights, each by the first of the patterns that its name begins with; the others as they are named."""
    renamed = {}
    for name, weight in weights.items():
        pattern, new = next(((p, n) for p, n in names if re.match(p, name)), ("^", ""))
        renamed[re.sub(pattern, new, name)] = weight
    return renamed


def filled[M: PreTrainedModel](model: M, weights: Mapping[str, Tensor]) -> M:
    """The model with these weights; weights that it does not have are ignored."""
    wanted = model.state_dict()
    if missing := sorted(set(wanted) - set(weights)):
        raise InputError(f"the files lack {len(missing)} weights of the model, among them {', '.join(missing[:3])}")
    model.load_state_dict({name: weights[name] for name in wanted})
    return model
