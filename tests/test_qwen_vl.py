"""Qwen-VL: the backbone contract, and its released weights against a plain reading of the original."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from backbones import check_backbone
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import gelu, interpolate, layer_norm, silu

from vla.errors import InputError
from vla.models.backbone_inputs import DecoderInput, ImageInput
from vla.models.backbones import families
from vla.models.backbones.build import build
from vla.models.backbones.own_family import converted
from vla.models.backbones.qwen_vl import SPECIAL, VISUAL, QwenVL, load, rules

WIDTH, HEADS, OUT, CELLS, PATCH, SIDE, MLP = 24, 3, 32, 4, 7, 28, 60
START = 300
CONFIG = {
    "family": "qwen_vl",
    "model": {
        "model_type": "qwen2",
        "vocab_size": 128,
        "hidden_size": OUT,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 512,
    },
    "vision": {"width": WIDTH, "layers": 2, "heads": HEADS, "mlp_ratio": 2.5, "patch_size": PATCH, "cells": CELLS},
    "image_token_id": 102,
    "image_size": SIDE,
    "mean": [0.5, 0.4, 0.3],
    "std": [0.25, 0.25, 0.25],
}
# As the released config.json: the width of the MLP is of both its halves.
RELEASED = {
    "model_type": "qwen",
    "vocab_size": 320,
    "hidden_size": OUT,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "layer_norm_epsilon": 1e-6,
    "rotary_emb_base": 10000,
    "seq_length": 2048,
    "visual": {
        "heads": HEADS,
        "image_size": SIDE,
        "image_start_id": START,
        "layers": 2,
        "mlp_ratio": 2.5,
        "output_dim": OUT,
        "patch_size": PATCH,
        "width": WIDTH,
        "n_queries": CELLS,
    },
}


def released_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the released weights, at the sizes of `RELEASED`."""
    shapes: dict[str, tuple[int, ...]] = {
        "transformer.wte.weight": (320, OUT),
        "transformer.ln_f.weight": (OUT,),
        "lm_head.weight": (320, OUT),
    }
    for i in range(2):
        h = f"transformer.h.{i}."
        shapes |= {h + "ln_1.weight": (OUT,), h + "ln_2.weight": (OUT,)}
        shapes |= {h + "attn.c_attn.weight": (3 * OUT, OUT), h + "attn.c_attn.bias": (3 * OUT,)}
        shapes |= {h + "attn.c_proj.weight": (OUT, OUT), h + "mlp.c_proj.weight": (OUT, 48)}
        shapes |= {h + "mlp.w1.weight": (48, OUT), h + "mlp.w2.weight": (48, OUT)}
        block = f"transformer.visual.transformer.resblocks.{i}."
        shapes |= {block + f"ln_{n}.{kind}": (WIDTH,) for n in (1, 2) for kind in ("weight", "bias")}
        shapes |= {block + "attn.in_proj.weight": (3 * WIDTH, WIDTH), block + "attn.in_proj.bias": (3 * WIDTH,)}
        shapes |= {block + "attn.out_proj.weight": (WIDTH, WIDTH), block + "attn.out_proj.bias": (WIDTH,)}
        shapes |= {block + "mlp.c_fc.weight": (MLP, WIDTH), block + "mlp.c_fc.bias": (MLP,)}
        shapes |= {block + "mlp.c_proj.weight": (WIDTH, MLP), block + "mlp.c_proj.bias": (WIDTH,)}
    visual, pool = "transformer.visual.", "transformer.visual.attn_pool."
    shapes |= {visual + "conv1.weight": (WIDTH, 3, PATCH, PATCH), visual + "positional_embedding": (CELLS, WIDTH)}
    shapes |= {visual + f"ln_pre.{kind}": (WIDTH,) for kind in ("weight", "bias")}
    shapes |= {visual + f"ln_post.{kind}": (OUT,) for kind in ("weight", "bias")}
    shapes |= {visual + "proj": (OUT, OUT), pool + "query": (CELLS, OUT), pool + "pos_embed": (CELLS, OUT)}
    shapes |= {pool + f"{norm}.{kind}": (OUT,) for norm in ("ln_q", "ln_kv") for kind in ("weight", "bias")}
    shapes |= {pool + "kv_proj.weight": (OUT, WIDTH), pool + "attn.in_proj_weight": (3 * OUT, OUT)}
    shapes |= {pool + "attn.in_proj_bias": (3 * OUT,), pool + "attn.out_proj.weight": (OUT, OUT)}
    return shapes | {pool + "attn.out_proj.bias": (OUT,)}


def released() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) * 0.3 for name, shape in released_shapes().items()}


def save(folder: Path, weights: dict[str, Tensor], config: dict[str, Any]) -> None:
    """As released, in two shards."""
    names = sorted(weights)
    for i, part in enumerate((names[::2], names[1::2]), 1):
        save_file({name: weights[name] for name in part}, folder / f"model-0000{i}-of-00002.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    tokens = [bytes([i]) for i in range(256)] + [b"th", b"the", b" c", b"at", b" cat"]
    lines = [f"{base64.b64encode(token).decode()} {rank}" for rank, token in enumerate(tokens)]
    (folder / "qwen.tiktoken").write_text("\n".join(lines) + "\n")


def sight(weights: dict[str, Tensor], pixels: Tensor) -> Tensor:
    """Features (t d) of one image: the original read plainly."""

    def get(name: str) -> Tensor:
        return weights["transformer.visual." + name]

    def norm(x: Tensor, name: str) -> Tensor:
        return layer_norm(x, x.shape[-1:], get(name + ".weight"), get(name + ".bias"), 1e-6)

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ get(name + ".weight").T + get(name + ".bias")

    def bigger(positions: Tensor, side: int) -> Tensor:
        old = int(len(positions) ** 0.5)
        grid = positions.reshape(1, old, old, -1).permute(0, 3, 1, 2)
        return interpolate(grid, (side, side), mode="bicubic", align_corners=False)[0].permute(1, 2, 0).flatten(0, 1)

    side = SIDE // PATCH
    cut = pixels.reshape(3, side, PATCH, side, PATCH).permute(1, 3, 0, 2, 4).reshape(side * side, -1)
    x = norm(cut @ get("conv1.weight").flatten(1).T + bigger(get("positional_embedding"), side), "ln_pre")
    for i in range(2):
        block = f"transformer.resblocks.{i}."
        mixed = linear(norm(x, block + "ln_1"), block + "attn.in_proj").reshape(len(x), HEADS, -1)
        seen = []
        for head in range(HEADS):  # each has its query, key and value side by side
            q, k, v = mixed[:, head].split(WIDTH // HEADS, -1)
            seen.append((q @ k.T / (WIDTH // HEADS) ** 0.5).softmax(-1) @ v)
        x = x + linear(torch.cat(seen, -1), block + "attn.out_proj")
        x = x + linear(gelu(linear(norm(x, block + "ln_2"), block + "mlp.c_fc")), block + "mlp.c_proj")
    values = norm(x @ get("attn_pool.kv_proj.weight").T, "attn_pool.ln_kv")
    queries = norm(get("attn_pool.query"), "attn_pool.ln_q") + get("attn_pool.pos_embed")
    keys = values + bigger(get("attn_pool.pos_embed"), side)
    maps, shifts = get("attn_pool.attn.in_proj_weight").chunk(3), get("attn_pool.attn.in_proj_bias").chunk(3)
    q, k, v = (x @ m.T + b for x, m, b in zip((queries, keys, values), maps, shifts, strict=True))
    seen = (q @ k.T / OUT**0.5).softmax(-1) @ v
    return norm(linear(seen, "attn_pool.attn.out_proj"), "ln_post") @ get("proj")


def speech(weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """Logits (l v) of embeddings (l d): the original's decoder read plainly."""

    def norm(x: Tensor, name: str) -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * weights[name + ".weight"]

    size = OUT // 4
    angles = torch.arange(len(x))[:, None] * 10_000.0 ** -(torch.arange(0, size, 2) / size)
    cos, sin = torch.cat([angles, angles], -1).cos(), torch.cat([angles, angles], -1).sin()

    def turned(x: Tensor) -> Tensor:
        first, second = x.chunk(2, -1)
        return x * cos + torch.cat([-second, first], -1) * sin

    hidden = torch.ones(len(x), len(x), dtype=torch.bool).triu(1)
    for i in range(2):
        h = f"transformer.h.{i}."
        mixed = norm(x, h + "ln_1") @ weights[h + "attn.c_attn.weight"].T + weights[h + "attn.c_attn.bias"]
        queries, keys, values = (part.reshape(len(x), 4, size) for part in mixed.split(OUT, -1))
        seen = []
        for head in range(4):
            scores = turned(queries[:, head]) @ turned(keys[:, head]).T / size**0.5
            seen.append(scores.masked_fill(hidden, -torch.inf).softmax(-1) @ values[:, head])
        x = x + torch.cat(seen, -1) @ weights[h + "attn.c_proj.weight"].T
        y = norm(x, h + "ln_2")
        y = (y @ weights[h + "mlp.w1.weight"].T) * silu(y @ weights[h + "mlp.w2.weight"].T)
        x = x + y @ weights[h + "mlp.c_proj.weight"].T
    return norm(x, "transformer.ln_f") @ weights["lm_head.weight"].T


def test_keeps_the_contract() -> None:
    check_backbone(lambda: build(CONFIG))


def test_every_released_weight_has_one_place() -> None:
    weights = released()
    ours = converted(weights, rules(HEADS))
    expected = build(CONFIG | {"model": CONFIG["model"] | {"vocab_size": 320, "intermediate_size": 48}})
    assert {name: w.shape for name, w in ours.items()} == {n: w.shape for n, w in expected.state_dict().items()}
    with pytest.raises(InputError, match=r"transformer\.h\.0\.attn\.new is not a weight"):
        converted({"transformer.h.0.attn.new": torch.zeros(1)}, rules(HEADS))


def test_a_released_folder_says_what_the_original_says(tmp_path: Path) -> None:
    weights = released()
    save(tmp_path, weights, RELEASED)
    backbone, tokenizer = families.load(tmp_path)
    assert isinstance(backbone, QwenVL)
    backbone.eval()
    assert (backbone.tokens_per_image, backbone.image_token_id) == (CELLS, START + 2)
    pixels = torch.randn(1, 1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        vision = backbone.encode_images(ImageInput(pixels, torch.tensor([[True]])))
        expected = sight(weights, pixels[0, 0])
        assert vision is not None
        torch.testing.assert_close(vision.features, expected, atol=1e-5, rtol=1e-4)
        ids = [5, START, *[START + 2] * CELLS, START + 1, 6, 7, 8]
        hidden, _ = backbone.forward(
            DecoderInput(backbone.embed(torch.tensor([ids]), vision), torch.ones(1, len(ids)).bool())
        )
        embeds = weights["transformer.wte.weight"][ids]
        embeds[2 : 2 + CELLS] = expected
        torch.testing.assert_close(backbone.logits(hidden)[0], speech(weights, embeds), atol=1e-4, rtol=1e-4)


def test_the_tokenizer_is_read_from_the_ranks(tmp_path: Path) -> None:
    save(tmp_path, released(), RELEASED)
    _, tokenizer = load(tmp_path)
    text = "the cat\n12 thé"
    ids = tokenizer.encode(text)
    # Ranks: "the", " cat", a line, each digit alone, " th" (a space, then "th") and the two bytes of é.
    assert ids == [257, 260, 10, 49, 50, 32, 256, 195, 169]
    assert tokenizer.decode(ids) == text
    assert tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<img>", "<imgpad>"]) == [
        261,
        261 + len(SPECIAL) + VISUAL.index("<img>"),
        261 + len(SPECIAL) + 8,
    ]
    assert tokenizer.encode("<img></img>") == tokenizer.convert_tokens_to_ids(["<img>", "</img>"])
    assert len(SPECIAL) == 151851 - 151643  # with Qwen's 151643 ranks, "<img>" is token 151857
    assert 151643 + len(SPECIAL) + VISUAL.index("<img>") == 151857


def test_other_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no config\.json"):
        load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(InputError, match="of the family llama, not qwen"):
        load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen"}))
    with pytest.raises(InputError, match="Qwen without images"):
        load(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(RELEASED))
    with pytest.raises(InputError, match=r"no \*\.safetensors"):
        load(tmp_path)
    weights = released()
    del weights["transformer.visual.proj"]
    save(tmp_path, weights, RELEASED)
    with pytest.raises(InputError, match=r"connector\.project\.weight"):
        load(tmp_path)
    save(tmp_path, released(), RELEASED)
    with pytest.raises(InputError, match="30 pixels do not divide into patches of 7"):
        load(tmp_path, image_size=30)
    (tmp_path / "qwen.tiktoken").unlink()
    with pytest.raises(InputError, match=r"no qwen\.tiktoken"):
        load(tmp_path)


def test_another_size_and_precision(tmp_path: Path) -> None:
    save(tmp_path, released(), RELEASED)
    backbone, _ = load(tmp_path, image_size=42, dtype=torch.bfloat16)
    assert {weight.dtype for weight in backbone.parameters()} == {torch.bfloat16}
    vision = backbone.encode_images(
        ImageInput(torch.zeros(1, 1, 3, 42, 42, dtype=torch.bfloat16), torch.tensor([[True]]))
    )
    assert vision is not None and vision.features.shape == (CELLS, OUT)
    assert torch.get_default_dtype() == torch.float32
