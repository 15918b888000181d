"""InternVL 1.5, 2 and 2.5 as their makers publish them (`internvl_chat`), brought into transformers' layout.

InternViT, a pixel shuffle and an MLP, and InternLM2, Llama or Qwen2. "How Far Are We to GPT-4V?" (InternVL 1.5) and
"Expanding Performance Boundaries of Open-Source Multimodal Models" (InternVL 2.5).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import (
    AutoTokenizer,
    InternVLConfig,
    InternVLForConditionalGeneration,
    PreTrainedTokenizerFast,
)
from transformers.modeling_utils import local_torch_dtype

from vla.errors import InputError
from vla.models.backbones import internlm2_tokenizer
from vla.models.backbones.catalog import INTERNVL_TEMPLATES
from vla.models.backbones.converters import Names, filled, renamed
from vla.models.backbones.own_family import released_config, released_weights

IMAGE = "<IMG_CONTEXT>"
"""The token of a part of an image."""
VISION = {
    **{name: name for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")},
    **{name: name for name in ("image_size", "patch_size", "hidden_act", "norm_type", "layer_norm_eps")},
    "qkv_bias": "attention_bias",
    "qk_normalization": "use_qk_norm",
}
"""InternViT's settings, and what transformers calls them."""
NORM_EPS = 1e-6
"""Of the norms of queries and keys in transformers' InternViT, whatever its configuration says."""
LANGUAGES = {"InternLM2ForCausalLM": "llama", "LlamaForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2"}
"""Classes of language models, and the model_type that each is read as."""
SHAPE = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
TEXT = (
    *("num_key_value_heads", "hidden_act", "rms_norm_eps", "max_position_embeddings", "rope_theta", "rope_scaling"),
    *("use_sliding_window", "sliding_window", "max_window_layers", "bos_token_id", "eos_token_id", "pad_token_id"),
)
"""Settings of a language model that have the same names in transformers; it is nothing without `SHAPE`."""

INTERN_LAYER, VIT_LAYER = r"^vision_model\.encoder\.layers\.(\d+)\.", r"model.vision_tower.encoder.layer.\1."
LM_LAYER, LLAMA_LAYER = r"^language_model\.model\.layers\.(\d+)\.", r"model.language_model.layers.\1."
NAMES: Names = (
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
    (r"^language_model\.(output|lm_head)\.", "lm_head."),
)


def convert(own: Path, folder: Path) -> None:
    """Converts the released files in `own` to a folder that `vla.models.backbones.families.load` reads.

    Args:
        own: The released files: weights as safetensors, and a tokenizer.json, InternLM2's tokenizer.model or Qwen2's
            vocabulary.
        folder: The folder to write to.

    Raises:
        InputError: for settings that transformers' classes do not have, and when a weight is missing.
    """
    released = released_config(own, model_type="internvl_chat")
    tokenizer: Any = _tokenizer(own)
    image = tokenizer.convert_tokens_to_ids(IMAGE)
    if image in (None, tokenizer.unk_token_id):
        raise InputError(f"the tokenizer of {own} has no {IMAGE}: it is not InternVL's")
    config, weights = config_of(released, image), released_weights(own)
    with local_torch_dtype(next(iter(weights.values())).dtype):
        model = model_of(weights, config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(_shown(released), indent=2))


def config_of(released: Mapping[str, Any], image: int) -> InternVLConfig:
    """Transformers' configuration for a released one, with its `template`, the name of the chat template.

    Args:
        released: The released configuration.
        image: The id of the image token.

    Raises:
        InputError: for settings that transformers' classes do not have.
    """
    vision, language = released.get("vision_config") or {}, released.get("llm_config") or {}
    kind = str(next(iter(language.get("architectures") or ()), None))
    if wrong := _unread(released, vision, language, kind):
        raise InputError(f"this InternVL cannot be converted: {', '.join(wrong)}")
    text = {name: language[name] for name in (*SHAPE, *TEXT) if name in language}
    made: Any = InternVLConfig
    config: InternVLConfig = made(
        vision_config={name: vision[own] for own, name in VISION.items()},
        # Whatever llm_config says, the released classes tie nothing.
        text_config={**text, "model_type": LANGUAGES[kind], "tie_word_embeddings": False},
        tie_word_embeddings=False,
        image_token_id=image,
        downsample_ratio=released.get("downsample_ratio", 0.5),
        template=released["template"],
    )
    return config


def _unread(
    released: Mapping[str, Any], vision: Mapping[str, Any], language: Mapping[str, Any], kind: str
) -> list[str]:
    """What of a released configuration transformers' classes do not have."""
    # What config.json does not say is as in the released class.
    config = {"ps_version": "v1", "select_layer": -1, "pad2square": False, "template": None, **released}
    wrong = [f"it has no {name}" for name in VISION if name not in vision]
    wrong += [f"its language model has no {name}" for name in SHAPE if name not in language]
    for name, value in (("ps_version", "v2"), ("select_layer", -1), ("pad2square", False)):
        if config[name] != value:
            wrong.append(f"{name} is {config[name]}, not {value}")
    if config["template"] not in INTERNVL_TEMPLATES:
        wrong.append(f"template is {config['template']}, not one of {', '.join(INTERNVL_TEMPLATES)}")
    if config.get("dynamic_image_size") and not config.get("use_thumbnail"):
        wrong.append("images are cut into tiles without the whole (use_thumbnail)")
    if vision.get("qk_normalization") and vision.get("layer_norm_eps") != NORM_EPS:
        wrong.append(f"layer_norm_eps is {vision.get('layer_norm_eps')}, not {NORM_EPS}")
    if kind not in LANGUAGES:
        wrong.append(f"the language model is {kind}, not one of {', '.join(LANGUAGES)}")
    return wrong


def model_of(weights: Mapping[str, Tensor], config: InternVLConfig) -> InternVLForConditionalGeneration:
    """The model with released weights. InternLM2 is a llama under other names.

    Its `wqkv` holds, for each key-value head, the heads of its queries, the key and the value. `config` is that of
    transformers. Raises InputError when a weight of the model is missing.
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
    return filled(InternVLForConditionalGeneration(config), renamed(split, NAMES))


def _tokenizer(own: Path) -> PreTrainedTokenizerFast:
    """InternLM2's is a SentencePiece model, Qwen2's one that transformers knows."""
    try:
        if (own / "tokenizer.json").is_file():
            tokenizer: Any = PreTrainedTokenizerFast.from_pretrained(own)
        elif (own / "tokenizer.model").is_file():
            tokenizer = internlm2_tokenizer.load(own)
        else:
            tokenizer = AutoTokenizer.from_pretrained(own, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise InputError(f"the tokenizer of {own} cannot be read: save it as tokenizer.json first ({error})") from error
    return tokenizer


def _shown(released: Mapping[str, Any]) -> dict[str, Any]:
    """How images are shown, as transformers' image processors write it."""
    side, tiled = (
        released.get("force_image_size") or released["vision_config"]["image_size"],
        released.get("dynamic_image_size"),
    )
    return {
        "image_processor_type": "GotOcr2ImageProcessor",
        "size": {"height": side, "width": side},
        "min_patches": released.get("min_dynamic_patch", 1) if tiled else 1,
        "max_patches": released.get("max_dynamic_patch", 6) if tiled else 1,
    }
