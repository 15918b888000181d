"""Tiny random checkpoints of the released families."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedTokenizerFast

TEXT = {
    "vocab_size": 128,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 14,
}
LLAMA = {"model_type": "llama", **TEXT}
QWEN_TEXT = {**TEXT, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}}
QWEN_IDS = {"image_token_id": 100, "video_token_id": 101, "vision_start_token_id": 102, "vision_end_token_id": 103}
BLIP_VISION = {k: v for k, v in VISION.items()}
QFORMER = {
    "vocab_size": 64,
    "hidden_size": 32,
    "encoder_hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
INTERN_VISION = {**VISION, "patch_size": [7, 7], "image_size": [28, 28]}
OPT = {
    "model_type": "opt",
    "vocab_size": 128,
    "hidden_size": 32,
    "ffn_dim": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "word_embed_proj_dim": 32,
    "do_layer_norm_before": True,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GEMMA = {"head_dim": 8, **TEXT}

MODELS: dict[str, dict[str, Any]] = {
    "llava-1.5": {
        "model_type": "llava",
        "vision_config": {"model_type": "clip_vision_model", **VISION},
        "text_config": LLAMA,
        "image_token_index": 100,
    },
    "llava-1": {
        "model_type": "llava",
        "vision_config": {"model_type": "clip_vision_model", **VISION},
        "text_config": LLAMA,
        "image_token_index": 100,
        "projector_hidden_act": "linear",
    },
    "pixtral": {
        "model_type": "llava",
        "vision_config": {"model_type": "pixtral", **VISION},
        "text_config": {"model_type": "mistral", "head_dim": 8, **TEXT},
        "image_token_index": 100,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
    },
    "internvl-3": {
        "model_type": "internvl",
        "vision_config": {"model_type": "internvl_vision", **INTERN_VISION},
        "text_config": {"model_type": "qwen2", **TEXT},
        "image_token_id": 100,
    },
    "internvl-1.5": {
        "model_type": "internvl",
        "vision_config": {
            "model_type": "internvl_vision",
            **INTERN_VISION,
            "use_qk_norm": True,
            "norm_type": "rms_norm",
        },
        "text_config": LLAMA,
        "image_token_id": 100,
    },
    "qwen2-vl": {
        "model_type": "qwen2_vl",
        "vision_config": {"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "mlp_ratio": 2},
        "text_config": QWEN_TEXT,
        **QWEN_IDS,
    },
    "qwen2.5-vl": {
        "model_type": "qwen2_5_vl",
        "vision_config": {
            "depth": 2,
            "hidden_size": 32,
            "out_hidden_size": 32,
            "num_heads": 4,
            "intermediate_size": 64,
            "fullatt_block_indexes": [1],
            "window_size": 56,
        },
        "text_config": QWEN_TEXT,
        **QWEN_IDS,
    },
    "paligemma": {
        "model_type": "paligemma",
        "vision_config": {"model_type": "siglip_vision_model", **VISION, "vision_use_head": False},
        "text_config": {"model_type": "gemma", **GEMMA},
        "image_token_index": 100,
        "projection_dim": 32,
    },
    "paligemma-2": {
        "model_type": "paligemma",
        "vision_config": {"model_type": "siglip_vision_model", **VISION, "vision_use_head": False},
        "text_config": {"model_type": "gemma2", "query_pre_attn_scalar": 8, **GEMMA},
        "image_token_index": 100,
        "projection_dim": 32,
    },
    "smolvlm": {
        "model_type": "smolvlm",
        "vision_config": {**VISION, "image_size": 56},
        "text_config": LLAMA,
        "scale_factor": 2,
        "image_token_id": 100,
        "pad_token_id": 0,
    },
    "blip-2": {
        "model_type": "blip-2",
        "vision_config": BLIP_VISION,
        "qformer_config": QFORMER,
        "text_config": OPT,
        "num_query_tokens": 4,
        "image_token_index": 100,
    },
    "minigpt-4": {
        "model_type": "blip-2",
        "vision_config": BLIP_VISION,
        "qformer_config": QFORMER,
        "text_config": {**LLAMA, "vocab_size": 129},
        "num_query_tokens": 4,
        "image_token_index": 128,
    },
    "idefics": {
        "model_type": "idefics",
        "vocab_size": 128,
        "additional_vocab_size": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "cross_layer_interval": 2,
        "use_resampler": True,
        "qk_layer_norms": True,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "vision_config": {**VISION, "embed_dim": 32},
        "perceiver_config": {
            "use_resampler": True,
            "resampler_n_latents": 4,
            "resampler_depth": 2,
            "resampler_n_heads": 4,
            "resampler_head_dim": 8,
            "qk_layer_norms_perceiver": True,
        },
    },
    "mllama": {
        "model_type": "mllama",
        "vision_config": {
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_global_layers": 1,
            "attention_heads": 4,
            "image_size": 28,
            "patch_size": 14,
            "intermediate_layers_indices": [0, 1],
            "vision_output_dim": 96,
        },
        "text_config": {
            **TEXT,
            "num_hidden_layers": 4,
            "cross_attention_layers": [1, 3],
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        },
        "image_token_index": 128,
    },
}
"""Tiny configurations of transformers' classes."""

# The token of an image, and the side of the images.
RUNS: dict[str, dict[str, Any]] = {
    "qwen2-vl": {"image_size": 56},
    "qwen2.5-vl": {"image_size": 112},
    "smolvlm": {"image_size": 56},
    "idefics": {"image_token_id": 129},
    "mllama": {"image_token_id": 128},
    "minigpt-4": {"image_token_id": 128},
}


def config_of(name: str) -> dict[str, Any]:
    defaults = {"image_token_id": 100, "image_size": 28, "mean": [0.5, 0.4, 0.3], "std": [0.25, 0.25, 0.25]}
    family = "pixtral" if name == "pixtral" else MODELS[name]["model_type"]
    return {"family": family, "model": MODELS[name], **defaults, **RUNS.get(name, {})}


NAMES = {
    "pixtral": {104: "[IMG_BREAK]", 105: "[IMG_END]"},
    "internvl-3": {104: "<img>", 105: "</img>"},
    "qwen2-vl": {102: "<|vision_start|>", 103: "<|vision_end|>"},
    "qwen2.5-vl": {102: "<|vision_start|>", 103: "<|vision_end|>"},
    "smolvlm": {104: "<fake_token_around_image>", 105: "<global-img>"},
    "idefics": {128: "<fake_token_around_image>", 129: "<image>"},
    "minigpt-4": {104: "<Img>", 105: "</Img>"},
}
"""The tokens that a family's tokenizer has to have."""


def save_checkpoint(name: str, folder: Path, **changes: Any) -> Any:
    """Saves a random model of transformers' class with its tokenizer, as a released checkpoint; returns the model."""
    torch.manual_seed(0)
    values = MODELS[name] | changes
    config = AutoConfig.for_model(**values)
    model = AutoModelForImageTextToText.from_config(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.2 * torch.randn_like(weight)
    model.save_pretrained(folder)
    size = {"idefics": 130, "mllama": 129, "minigpt-4": 129}.get(name, 128)
    names = {i: f"w{i}" for i in range(size)} | NAMES.get(name, {})
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in names.items()}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in NAMES.get(name, {}).values()])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="w0", eos_token="w2").save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5] * 3, "image_std": [0.25] * 3}))
    return model
