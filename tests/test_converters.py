"""Weights under their released names become those of transformers' models."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_families import LLAMA, MODELS, TEXT
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import AutoConfig, Blip2ForConditionalGeneration, InternVLForConditionalGeneration, LlamaForCausalLM
from transformers import PreTrainedTokenizerFast as Fast

from vla.errors import InputError
from vla.models.backbones import converters, internvl
from vla.models.backbones.families import load


def minigpt4_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """As MiniGPT-4's modules are named: EVA's ViT, LAVIS' Q-Former, `llama_proj`, `llama_model`."""
    named = {}
    for name, weight in weights.items():
        name = name.replace("vision_model.embeddings.class_embedding", "visual_encoder.cls_token")
        name = name.replace("vision_model.embeddings.position_embedding", "visual_encoder.pos_embed")
        name = name.replace("vision_model.embeddings.patch_embedding", "visual_encoder.patch_embed.proj")
        name = name.replace("vision_model.post_layernorm", "ln_vision")
        name = name.replace("vision_model.encoder.layers", "visual_encoder.blocks")
        name = name.replace("self_attn.projection", "attn.proj").replace("layer_norm", "norm")
        if "visual_encoder" in name:
            name = name.replace("self_attn", "attn")
        name = name.replace("attention.attention", "attention.self")
        name = name.replace("qformer.layernorm", "Qformer.bert.embeddings.LayerNorm")
        name = name.replace("qformer.", "Qformer.bert.").replace("language_projection", "llama_proj")
        name = re.sub("^language_model", "llama_model", name)
        if name.endswith("attn.qkv.bias"):
            query, _, value = weight.chunk(3)
            named |= {name.replace("qkv.bias", "q_bias"): query, name.replace("qkv.bias", "v_bias"): value}
        else:
            named[name] = weight
    return named


def random_model(cls: Any, name: str) -> Any:
    torch.manual_seed(0)
    model = cls(AutoConfig.for_model(**MODELS[name]))
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.1 * torch.randn_like(weight)
        for layer in model.vision_model.encoder.layers if name == "minigpt-4" else ():
            layer.self_attn.qkv.bias.unflatten(0, (3, -1))[1] = 0  # keys have none
    return model


def test_minigpt4() -> None:
    model = random_model(Blip2ForConditionalGeneration, "minigpt-4")
    released = minigpt4_names(model.state_dict())
    assert {"visual_encoder.blocks.1.attn.v_bias", "visual_encoder.blocks.0.norm1.weight"} <= set(released)
    assert "Qformer.bert.encoder.layer.0.crossattention.self.key.weight" in released
    assert {"ln_vision.bias", "query_tokens", "llama_proj.weight", "llama_model.lm_head.weight"} <= set(released)
    # The last block of EVA's ViT is not used.
    converted = converters.minigpt4(released | {"visual_encoder.blocks.2.norm1.weight": torch.zeros(32)}, model.config)
    for name, weight in model.state_dict().items():
        assert torch.equal(converted.state_dict()[name], weight), name
    del released["query_tokens"]
    with pytest.raises(InputError, match="query_tokens"):
        converters.minigpt4(released, model.config)


def test_minigpt4_from_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = random_model(Blip2ForConditionalGeneration, "minigpt-4")
    released = minigpt4_names(model.state_dict())
    vit = {k.removeprefix("visual_encoder."): v for k, v in released.items() if k.startswith("visual_encoder.")}
    torch.save(vit, tmp_path / "eva.pth")
    blip2 = {k: v for k, v in released.items() if k.startswith(("Qformer", "query_tokens", "ln_vision"))}
    torch.save({"model": blip2}, tmp_path / "blip2.pth")
    torch.save({"model": {k: v for k, v in released.items() if k.startswith("llama_proj")}}, tmp_path / "own.pth")
    vicuna = LlamaForCausalLM(AutoConfig.for_model(**LLAMA))
    vicuna.save_pretrained(tmp_path / "vicuna")
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(TEXT["vocab_size"])}, unk_token="w0"))
    Fast(tokenizer_object=words).save_pretrained(tmp_path / "vicuna")
    vision, qformer = model.config.vision_config, model.config.qformer_config
    tiny = converters.Blip2Config
    monkeypatch.setattr(
        converters, "Blip2Config", lambda **rest: tiny(vision_config=vision, qformer_config=qformer, **rest)
    )
    files = (tmp_path / f"{name}.pth" for name in ("own", "blip2", "eva"))
    converters.convert_minigpt4(*files, tmp_path / "vicuna", tmp_path / "converted")
    backbone, tokenizer = load(tmp_path / "converted")
    assert (backbone.family, backbone.vocab_size, backbone.image_token_id) == ("blip-2", 129, 128)
    assert tokenizer.convert_ids_to_tokens(128) == "<image>"
    assert torch.equal(backbone.model.language_projection.weight, model.language_projection.weight)
    assert torch.equal(backbone.model.language_model.lm_head.weight[:128], vicuna.lm_head.weight)


def internvl_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """As InternVL-1.5's modules are named: InternViT, `mlp1`, and InternLM2 with 2 queries for each key and value."""
    named = {}
    for name, weight in weights.items():
        name = name.replace("model.vision_tower.embeddings.cls_token", "vision_model.embeddings.class_embedding")
        name = name.replace("model.vision_tower", "vision_model").replace("position_embeddings", "position_embedding")
        name = name.replace("patch_embeddings.projection", "patch_embedding").replace("lambda_", "ls")
        name = name.replace("layernorm_before", "norm1").replace("layernorm_after", "norm2")
        name = name.replace("encoder.layer.", "encoder.layers.").replace("attention.projection_layer", "attn.proj")
        if name.startswith("vision_model"):
            name = name.replace("attention.", "attn.")
        name = name.replace("model.multi_modal_projector.layer_norm", "mlp1.0")
        name = name.replace("model.multi_modal_projector.linear_1", "mlp1.1")
        name = name.replace("model.multi_modal_projector.linear_2", "mlp1.3")
        name = name.replace("lm_head", "language_model.output")
        name = name.replace("model.language_model", "language_model.model").replace("embed_tokens", "tok_embeddings")
        name = name.replace("self_attn.o_proj", "attention.wo").replace("self_attn", "attention")
        for old, new in (("gate", "w1"), ("down", "w2"), ("up", "w3")):
            name = name.replace(f"mlp.{old}_proj", f"feed_forward.{new}")
        name = name.replace("input_layernorm", "attention_norm").replace("post_attention_layernorm", "ffn_norm")
        named[name] = weight
    for name in [name for name in named if ".q_proj." in name]:
        query, key, value = (named.pop(name.replace("q_proj", part)) for part in ("q_proj", "k_proj", "v_proj"))
        if name.startswith("vision_model"):
            named[name.replace("q_proj", "qkv")] = torch.cat([query, key, value])
            continue
        heads = [part.unflatten(0, (2, -1, 8)) for part in (query, key, value)]
        named[name.replace("q_proj", "wqkv")] = torch.cat(heads, 1).flatten(0, 2)
    return named


def test_internvl_with_internlm2() -> None:
    model = random_model(InternVLForConditionalGeneration, "internvl-1.5")
    released = internvl_names(model.state_dict())
    assert released["language_model.model.layers.0.attention.wqkv.weight"].shape == (64, 32)
    assert {"vision_model.encoder.layers.0.attn.q_norm.weight", "vision_model.encoder.layers.1.ls1"} <= set(released)
    converted = internvl.model_of(released, model.config)
    for name, weight in model.state_dict().items():
        assert torch.equal(converted.state_dict()[name], weight), name
