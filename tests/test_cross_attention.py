"""Cross-attention over any causal language model: exact at the start, and each token looks at its own image."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from backbones import check_backbone, make_rows, uncached
from transformers.models.mllama.configuration_mllama import MllamaTextConfig
from transformers.models.mllama.modeling_mllama import MllamaCrossAttentionDecoderLayer

from vla.errors import InputError
from vla.models.backbone_inputs import DecoderInput, ImageInput
from vla.models.backbones.cross_attention import AdapterBlock, FlamingoBlock, latest_image, latest_run
from vla.models.backbones.flamingo import CrossAttentionVLM

IMAGE = 100
SIZES = {"vocab_size": 128, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
LANGUAGES: dict[str, dict[str, Any]] = {
    "llama": SIZES | {"intermediate_size": 64, "num_key_value_heads": 2},
    "qwen2": SIZES | {"intermediate_size": 64, "num_key_value_heads": 2},
    "gpt_neox": SIZES | {"intermediate_size": 64},
    "gpt2": {"vocab_size": 128, "n_embd": 32, "n_layer": 2, "n_head": 4, "bos_token_id": 1, "eos_token_id": 2},
    "opt": SIZES | {"ffn_dim": 64, "word_embed_proj_dim": 32, "max_position_embeddings": 64},
    "mpt": {"vocab_size": 128, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64},
}
CLIP = {
    "model_type": "clip_vision_model",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}
FLAMINGO = {"connector": {"kind": "resampler", "latents": 4, "layers": 2}, "blocks": {"kind": "flamingo"}}
ADAPTER = {"connector": {"kind": "linear"}, "blocks": {"kind": "adapter", "every": 2}}


def make(language: str = "llama", style: dict[str, Any] = FLAMINGO) -> CrossAttentionVLM:
    config = {"model_type": language, "initializer_range": 0.2, **LANGUAGES[language]}
    return CrossAttentionVLM(CLIP, config, 28, IMAGE, mean=[0.5] * 3, std=[0.5] * 3, **style).eval()


@pytest.mark.parametrize("language", ["llama", "gpt_neox", "mpt"])
def test_flamingo_keeps_the_contract(language: str) -> None:
    check_backbone(lambda: make(language))


def test_an_adapter_keeps_the_contract() -> None:
    check_backbone(lambda: make("qwen2", ADAPTER))


@pytest.mark.parametrize("style", [FLAMINGO, ADAPTER], ids=["flamingo", "adapter"])
@pytest.mark.parametrize("language", LANGUAGES)
@torch.no_grad()
def test_before_training_it_is_the_language_model_to_the_bit(language: str, style: dict[str, Any]) -> None:
    backbone = make(language, style)
    rows = make_rows(backbone)
    alone = copy.deepcopy(backbone.language)
    for module in alone.modules():
        module._forward_pre_hooks.clear()
    positions = {"position_ids": (rows.mask.long().cumsum(1) - 1).clamp(min=0)} if language != "mpt" else {}
    expected = alone(rows.ids, attention_mask=rows.mask.long(), **positions).logits
    assert torch.equal(uncached(backbone, rows, segmented=False)[rows.mask], expected[rows.mask])
    open_gates(backbone)
    assert not torch.equal(uncached(backbone, rows, segmented=False)[rows.mask], expected[rows.mask])


@torch.no_grad()
def test_tokens_before_an_image_do_not_see_it() -> None:
    backbone = make()
    open_gates(backbone)
    ids = torch.tensor([[5, 6, IMAGE, 7, 8, IMAGE, 9]])
    pixels = torch.randn(1, 2, 3, 28, 28)

    def hidden(pixels: torch.Tensor) -> torch.Tensor:
        vision = backbone.encode_images(ImageInput(pixels, torch.ones(1, 2, dtype=torch.bool)))
        return backbone.forward(
            DecoderInput(backbone.embed(ids, vision), torch.ones_like(ids, dtype=torch.bool), vision=vision)
        )[0][0]

    before = hidden(pixels)
    for image, first in ((0, 2), (1, 5)):
        other = pixels.clone()
        other[0, image] += 1
        changed = (hidden(other) != before).any(-1)
        assert changed.tolist() == [i >= first for i in range(ids.shape[1])]


@torch.no_grad()
def test_a_row_that_may_look_at_nothing_gets_zeros() -> None:
    block = FlamingoBlock(make().language.config, 16)
    keys, allowed = block.attention.keys(torch.randn(1, 3, 16)), torch.tensor([[[False] * 3, [True] * 3]])
    out = block.attention(torch.randn(1, 2, 32), keys, allowed)
    assert torch.equal(out[0, 0], torch.zeros(32))
    assert out[0, 1].abs().min() > 0


def test_a_token_looks_at_the_latest_image_or_the_latest_run_of_them() -> None:
    places = torch.tensor([[0, 1, 1, 0, 1, 0], [0, 0, 0, 1, 0, 0]]).bool()
    one = [[[], [0], [1], [1], [2], [2]], [[], [], [], [0], [0], [0]]]
    run = [[[], [0], [0, 1], [0, 1], [2], [2]], [[], [], [], [0], [0], [0]]]
    for looks, expected in ((latest_image(places, 3), one), (latest_run(places, 3), run)):
        assert [[token.nonzero()[:, 0].tolist() for token in row] for row in looks] == expected


@torch.no_grad()
def test_the_adapter_is_the_cross_attention_layer_of_llama_3_2() -> None:
    config = MllamaTextConfig(
        **SIZES, intermediate_size=64, num_key_value_heads=2, cross_attention_layers=[0], attn_implementation="eager"
    )
    theirs = MllamaCrossAttentionDecoderLayer(config, 0).eval()
    ours = AdapterBlock(config, 32)
    for parameter in theirs.parameters():
        parameter.normal_(std=0.3)
    cross, mlp = theirs.cross_attn, theirs.mlp
    ours.load_state_dict(
        {
            "attention_gate": theirs.cross_attn_attn_gate,
            "ff_gate": theirs.cross_attn_mlp_gate,
            "norm.weight": theirs.input_layernorm.weight,
            "ff.norm.weight": theirs.post_attention_layernorm.weight,
            "attention.to_q.weight": cross.q_proj.weight,
            "attention.to_kv.weight": torch.cat([cross.k_proj.weight, cross.v_proj.weight]),
            "attention.to_out.weight": cross.o_proj.weight,
            "attention.q_norm.weight": cross.q_norm.weight,
            "attention.k_norm.weight": cross.k_norm.weight,
            "ff.gate.weight": mlp.gate_proj.weight,
            "ff.up.weight": mlp.up_proj.weight,
            "ff.down.weight": mlp.down_proj.weight,
        }
    )
    x, source = torch.randn(2, 5, 32), torch.randn(2, 6, 32)
    allowed = torch.rand(2, 5, 6) < 0.5
    allowed[..., 0] = True
    added = torch.zeros(2, 1, 5, 6).masked_fill(~allowed[:, None], torch.finfo(torch.float32).min)
    rows = torch.ones(2, 1, 5, 1)
    expected = theirs(x, source, added, None, rows)
    torch.testing.assert_close(ours(x, ours.attention.keys(source), allowed), expected, atol=1e-5, rtol=1e-5)


def test_a_copy_looks_with_its_own_blocks() -> None:
    backbone = make()
    twin = copy.deepcopy(backbone)
    open_gates(twin)
    rows = make_rows(backbone)
    assert not torch.equal(uncached(backbone, rows)[rows.mask], uncached(twin, rows)[rows.mask])


@pytest.mark.parametrize(
    ("blocks", "named"),
    [({"kind": "gate"}, "gate"), ({"every": 3}, "1 to 2"), ({"kind": "adapter", "heads": 8}, "heads")],
)
def test_wrong_blocks_are_named(blocks: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        make("llama", {"connector": {"kind": "linear"}, "blocks": blocks})


@torch.no_grad()
def open_gates(backbone: CrossAttentionVLM) -> None:
    for name, parameter in backbone.blocks.named_parameters():
        if name.endswith("_gate"):
            parameter.fill_(0.7)
