"""Released weights under other names than transformers': MiniGPT-4, and InternVL with InternLM2 (1.5 to 2.5)."""

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
    InternVLConfig,
    InternVLForConditionalGeneration,
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

INTERN_LAYER, VIT_LAYER = r"^vision_model\.encoder\.layers\.(\d+)\.", r"model.vision_tower.encoder.layer.\1."
LM_LAYER, LLAMA_LAYER = r"^language_model\.model\.layers\.(\d+)\.", r"model.language_model.layers.\1."
INTERNVL: Names = (
    (r"^vision_model\.embeddings\.class_embedding$", "model.vision_tower.embeddings.cls_token"),
    (r"^vision_model\.embeddings\.position_embedding$", "model.vision_tower.embeddings.position_embeddings"),
    (r"^vision_model\.embeddings\.patch_embedding\.", "model.vision_tower.embeddings.patch_embeddings.projection."),
    (INTERN_LAYER + r"ls(\d)$", VIT_LAYER + r"lambda_\2"),
    (INTERN_LAYER + r"norm1\.", VIT_LAYER + "layernorm_before."),
    (INTERN_LAYER + r"norm2\.", VIT_LAYER + "layernorm_after."),
    (INTERN_LAYER + r"attn\.proj\.", VIT_LAYER + "attention.projection_layer."),
    (INTERN_LAYER + r"attn\.", VIT_LAYER + "attention."),
    (INTERN_LAYER, VIT_LAYER),
    (r"^mlp1\.0\.", "model.multi_modal_projector.layer_norm."),
    (r"^mlp1\.1\.", "model.multi_modal_projector.linear_1."),
    (r"^mlp1\.3\.", "model.multi_modal_projector.linear_2."),
    (r"^language_model\.model\.tok_embeddings\.", "model.language_model.embed_tokens."),
    (LM_LAYER + r"attention\.wo\.", LLAMA_LAYER + "self_attn.o_proj."),
    (LM_LAYER + r"attention\.", LLAMA_LAYER + "self_attn."),
    (LM_LAYER + r"feed_forward\.w1\.", LLAMA_LAYER + "mlp.gate_proj."),
    (LM_LAYER + r"feed_forward\.w2\.", LLAMA_LAYER + "mlp.down_proj."),
    (LM_LAYER + r"feed_forward\.w3\.", LLAMA_LAYER + "mlp.up_proj."),
    (LM_LAYER + r"attention_norm\.", LLAMA_LAYER + "input_layernorm."),
    (LM_LAYER + r"ffn_norm\.", LLAMA_LAYER + "post_attention_layernorm."),
    (r"^language_model\.model\.", "model.language_model."),
    (r"^language_model\.output\.", "lm_head."),
)


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
    return _filled(Blip2ForConditionalGeneration(config), _renamed(biased, MINIGPT4))


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


def internvl(weights: Mapping[str, Tensor], config: InternVLConfig) -> InternVLForConditionalGeneration:
    """InternVL whose language model is InternLM2, which is a llama under other names.

    Its `wqkv` holds, for each key-value head, the heads of its queries, the key and the value. `config` is that of
    transformers, with a llama as its text. Raises InputError when a weight of the model is missing.
    """
    text: Any = config.text_config
    groups = text.num_attention_heads // text.num_key_value_heads
    size = text.hidden_size // text.num_attention_heads
    split: dict[str, Tensor] = {}
    for name, weight in weights.items():
        if name.endswith(".attention.wqkv.weight"):
            heads = weight.unflatten(0, (text.num_key_value_heads, groups + 2, size))
            parts = {"q_proj": heads[:, :groups], "k_proj": heads[:, groups], "v_proj": heads[:, groups + 1]}
            split |= {name.replace("wqkv", part): w.reshape(-1, weight.shape[1]) for part, w in parts.items()}
        elif ".attn.qkv." in name:
            thirds = zip(("q_proj", "k_proj", "v_proj"), weight.chunk(3), strict=True)
            split |= {name.replace("qkv", part): third for part, third in thirds}
        else:
            split[name] = weight
    return _filled(InternVLForConditionalGeneration(config), _renamed(split, INTERNVL))


def _renamed(weights: Mapping[str, Tensor], names: Names) -> dict[str, Tensor]:
    renamed = {}
    for name, weight in weights.items():
        pattern, new = next(((p, n) for p, n in names if re.match(p, name)), ("^", ""))
        renamed[re.sub(pattern, new, name)] = weight
    return renamed


def _filled[M: PreTrainedModel](model: M, weights: Mapping[str, Tensor]) -> M:
    """The model with these weights; weights that it does not have are ignored."""
    wanted = model.state_dict()
    if missing := sorted(set(wanted) - set(weights)):
        raise InputError(f"the files lack {len(missing)} weights of the model, among them {', '.join(missing[:3])}")
    model.load_state_dict({name: weights[name] for name in wanted})
    return model
