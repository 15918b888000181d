"""The action expert has the geometry of the decoder that it reads: heads, rotation, positions, norms and activation."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from backbones import embed, make_rows
from lerobot.policies.pi0.modeling_pi0 import compute_layer_complete
from lerobot.policies.pi_gemma import PiGemmaModel
from lerobot.policies.smolvla.smolvlm_with_expert import SmolVLMWithExpertModel
from test_composed import ENCODERS, LLAMA, composed
from tiny_families import config_of
from torch import Tensor
from transformers import GemmaConfig

from vla.benchmarks.train_shapes import TINY, save_for_lerobot
from vla.errors import InputError
from vla.models.action_heads.action_expert import ActionExpert, ActionExpertShape, ExpertContext, frequencies
from vla.models.action_heads.decoder_shape import expert_shape
from vla.models.action_heads.decoding import keys_values
from vla.models.backbone_inputs import DecoderInput
from vla.models.backbones.backbone import Backbone
from vla.models.backbones.build import build
from vla.models.vla import VLA

NAMES = {
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "out": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
    "before_attention.norm": "input_layernorm",
    "before_mlp.norm": "post_attention_layernorm",
}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 64}
YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 64}


@torch.no_grad()
def copy_layers(expert: ActionExpert, decoder: Any, gemma: bool = False) -> None:
    """Gives an expert the weights of a decoder; Gemma's norms multiply by 1 + weight."""
    layers = [*zip(expert.layers, decoder.layers, strict=True)]
    pairs = [(a.get_submodule(x), b.get_submodule(y)) for a, b in layers for x, y in NAMES.items()]
    for ours, theirs in [*pairs, (expert.norm.norm, decoder.norm)]:
        norm = ours.weight.ndim == 1
        ours.weight.copy_(theirs.weight + (gemma and norm))


def released(name: str, heads: int = 4, kv_heads: int = 2, **rotation: Any) -> Callable[[], Backbone]:
    """Random weights, large enough that attention looks somewhere, with a rotation that is not the default."""

    def make() -> Backbone:
        torch.manual_seed(0)
        config = config_of(name)
        text = dict(config["model"]["text_config"]) | {"initializer_range": 0.3}
        text |= {"num_attention_heads": heads, "num_key_value_heads": kv_heads}
        text["rope_parameters"] = dict(text.get("rope_parameters", {})) | rotation
        return build(config | {"model": {**config["model"], "text_config": text}})

    return make


BACKBONES: dict[str, Callable[[], Backbone]] = {
    "smolvlm": released("smolvlm", rope_type="default", rope_theta=1e5),
    "internvl": released("internvl-3", rope_type="default", rope_theta=1e6),
    "qwen2.5-vl": released("qwen2.5-vl", rope_theta=1e6),
    "qwen2-vl": released("qwen2-vl", rope_theta=1e6),
    "paligemma": released("paligemma", rope_type="default", rope_theta=3e4),
    "llama 3": lambda: composed(ENCODERS["clip"], LLAMA | {"rope_parameters": LLAMA3}, {"kind": "linear"}),
    "yarn": lambda: composed(ENCODERS["clip"], LLAMA | {"rope_parameters": YARN}, {"kind": "linear"}),
}


@pytest.mark.parametrize("name", BACKBONES)
def test_an_expert_with_the_decoders_weights_goes_on_as_the_decoder_does(name: str) -> None:
    """Two images, one and none before it, rows padded on the left: the same hidden states token by token."""
    backbone: Any = BACKBONES[name]().eval()
    language = backbone.freezable_modules()["language"]
    decoder = next(m for m in language.modules() if hasattr(m, "layers") and hasattr(m, "rotary_emb"))
    for layer in decoder.layers:
        for part in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
            if part.bias is not None:
                torch.nn.init.zeros_(part.bias)
        torch.nn.init.uniform_(layer.input_layernorm.weight, 0.5, 1.5)
    shape = expert_shape(backbone, width=backbone.hidden_size, mlp_size=decoder.layers[0].mlp.up_proj.out_features)
    assert shape.heads == decoder.config.num_attention_heads > shape.kv_heads
    expert = ActionExpert(shape).eval()
    copy_layers(expert, decoder, gemma=name == "paligemma")
    rows = make_rows(backbone)
    embeds, vision = embed(backbone, rows)
    with torch.no_grad():
        prompt, mask = embeds[:, : rows.prompt], rows.mask[:, : rows.prompt]
        _, cache = backbone.forward(DecoderInput(prompt, mask, backbone.new_cache(), vision))
        layers, start = [(k.clone(), v.clone()) for k, v in keys_values(cache)], backbone.next_position(mask, cache)
        expected, _ = backbone.forward(DecoderInput(embeds[:, rows.prompt :], rows.mask, cache, vision))
        count = expected.shape[1]
        tokens = embeds[:, rows.prompt :]
        seen = torch.ones(tokens.shape[:2], dtype=torch.bool)
        found = expert(tokens, seen, torch.arange(count), ExpertContext(layers, mask, start))
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=1e-4)


def test_a_decoder_that_rotates_a_part_of_each_head() -> None:
    language = {
        "model_type": "phi",
        **{k: v for k, v in LLAMA.items() if k not in ("model_type", "num_key_value_heads")},
    }
    backbone = composed(ENCODERS["clip"], language | {"partial_rotary_factor": 0.5}, {"kind": "linear"})
    shape = expert_shape(backbone)
    assert (shape.head_dim, len(shape.frequencies)) == (8, 2)
    expert = ActionExpert(shape)
    x, positions = torch.randn(2, 4, 3, 8), torch.arange(3).expand(2, -1) + 5
    from transformers.models.phi.modeling_phi import PhiRotaryEmbedding, apply_rotary_pos_emb

    from vla.models.action_heads.action_expert import rotate

    cos, sin = PhiRotaryEmbedding(backbone.language.config)(x, positions)
    turned, _ = apply_rotary_pos_emb(x[..., :4], x[..., :4], cos, sin)
    torch.testing.assert_close(rotate(x, expert.rotation(positions)), torch.cat([turned, x[..., 4:]], -1))


def test_pi0s_expert_is_lerobots() -> None:
    """The same prefix through LeRobot's joint layers and through our backbone; the same actions out of both experts."""
    torch.manual_seed(0)
    backbone: Any = released("paligemma", 8, 1)().eval()  # LeRobot's layers have 8 heads, whatever is configured
    decoder = backbone.model.model.language_model
    expert = ActionExpert(expert_shape(backbone, width=24, mlp_size=96)).eval()
    sizes = decoder.config.to_dict() | {"dtype": "float32", "use_adarms": False, "adarms_cond_dim": None}
    prefix_model = PiGemmaModel(GemmaConfig(**sizes)).eval()
    prefix_model.load_state_dict(decoder.state_dict())
    suffix_model = PiGemmaModel(GemmaConfig(**sizes | {"hidden_size": 24, "intermediate_size": 96})).eval()
    for parameter in suffix_model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    copy_layers(expert, suffix_model, gemma=True)
    rows = make_rows(backbone)
    embeds, vision = embed(backbone, rows)
    mask, prompt = rows.mask[:, : rows.prompt], embeds[:, : rows.prompt]
    # pi0's suffix: the state, and actions which see each other.
    suffix, blocks = torch.randn(3, 6, 24), torch.tensor([0, 1, 1, 1, 1, 1])
    with torch.no_grad():
        _, cache = backbone.forward(DecoderInput(prompt, mask, backbone.new_cache(), vision))
        seen, start = torch.ones(3, 6, dtype=torch.bool), backbone.next_position(mask, cache)
        found = expert(suffix, seen, blocks, ExpertContext(keys_values(cache), mask, start))
        expected = lerobot_joint(prefix_model, suffix_model, prompt, suffix, mask, blocks)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def lerobot_joint(prefix: Any, suffix: Any, prompt: Tensor, tokens: Tensor, mask: Tensor, blocks: Tensor) -> Tensor:
    """The suffix's hidden states by LeRobot's layers, with the mask and positions of its `PI0Pytorch.forward`."""
    valid = torch.cat([mask, torch.ones(tokens.shape[:2], dtype=torch.bool)], 1)
    block = torch.cat([torch.zeros(mask.shape[1], dtype=torch.long), blocks + 1])
    allowed = (block[None, :] <= block[:, None]) & valid[:, None, :] & valid[:, :, None]
    added = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)[:, None]
    states: Any = [prompt, tokens]
    for layers in zip(prefix.layers, suffix.layers, strict=True):
        states = compute_layer_complete(
            states, added, valid.cumsum(1) - 1, [None, None], layers=layers, rotary_emb=prefix.rotary_emb
        )
    hidden, _ = suffix.norm(states[1], None)
    return hidden


@pytest.mark.parametrize("mode", ["self_attn", "cross_attn"])
def test_smolvlas_expert_is_lerobots(mode: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    save_for_lerobot(TINY[0], None, tmp_path)
    their: Any = SmolVLMWithExpertModel(
        str(tmp_path),
        load_vlm_weights=False,
        attention_mode=mode,
        self_attn_every_n_layers=2,
        expert_width_multiplier=0.75,
        device="cpu",
    )
    their.eval()  # returns nothing
    text, lm = their.config.text_config, their.lm_expert
    shape = ActionExpertShape(
        width=lm.config.hidden_size,
        mlp_size=lm.config.intermediate_size,
        layers=text.num_hidden_layers,
        heads=text.num_attention_heads,
        kv_heads=text.num_key_value_heads,
        head_dim=text.head_dim,
        frequencies=frequencies(text.head_dim),  # whatever its configuration says, LeRobot rotates by this
        activation=text.hidden_act,
        eps=text.rms_norm_eps,
        cross=mode == "cross_attn",
    )
    assert (shape.heads, shape.kv_heads) == (6, 2)
    expert = ActionExpert(shape).eval()
    copy_layers(expert, lm)
    prompt, tokens = torch.randn(2, 9, text.hidden_size), torch.randn(2, 5, shape.width)
    mask = torch.tensor([[True] * 9, [True] * 6 + [False] * 3])
    with torch.no_grad():
        within = mask[:, None, :] & mask[:, :, None]
        positions = mask.cumsum(1) - 1
        _, cache = their(attention_mask=within, position_ids=positions, inputs_embeds=[prompt, None], use_cache=True)
        layers = [(k.clone(), v.clone()) for k, v in keys_values(cache)]
        start, order = mask.sum(1), torch.arange(5)
        causal = torch.ones(5, 5, dtype=torch.bool).tril().expand(2, -1, -1)
        allowed = torch.cat([mask[:, None].expand(-1, 5, -1), causal], 2)
        (_, expected), _ = their(
            attention_mask=allowed,
            position_ids=start[:, None] + order,
            past_key_values=cache,
            inputs_embeds=[None, tokens],
            use_cache=True,
        )
        found = expert(tokens, torch.ones(2, 5, dtype=torch.bool), order, ExpertContext(layers, mask, start))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_a_checkpoint_tells_its_experts_shape_and_one_of_before_keeps_its_own(
    make_model: Callable[..., VLA], tmp_path: Path
) -> None:
    model = make_model(head="flow")
    model.save(tmp_path)
    values = json.loads((tmp_path / "processor.json").read_text())
    shape = values["head"]["expert"]
    assert shape["heads"] == 2 and shape["activation"] == "silu"
    assert VLA.load(tmp_path).continuous_head.expert.shape == model.continuous_head.expert.shape
    # Of before shapes were stored: as many heads as there are keys, GELU, and the plain count of tokens.
    values["head"] = {"kind": "flow", "knowledge_insulation": False, "width": None, "adaptive": False}
    (tmp_path / "processor.json").write_text(json.dumps(values))
    old = VLA.load(tmp_path)
    assert old.continuous_head.expert.shape.activation == "gelu_pytorch_tanh"
    context = ExpertContext([], torch.tensor([[False, True, True]]), start=torch.tensor([3]))
    assert old.processor.head is not None and old.processor.head._placed(context).start.tolist() == [2]  # type: ignore[attr-defined]
    old.save(tmp_path)
    again = VLA.load(tmp_path)
    assert again.continuous_head.expert.shape == old.continuous_head.expert.shape
    with pytest.raises(InputError, match="multiple of kv_heads"):
        make_model(head="flow", heads=3)
