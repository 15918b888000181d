"""InternVL 1.5 and 2.5 as they are published (`internvl_chat`), small and random; and what their own code makes of an
image and a question, read plainly: tiles, text, and logits."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from released_checkpoints import byte_level, sentence_piece
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import conv2d, gelu, layer_norm, silu, softmax

SIDE, PATCH, WIDE, LAYERS, HEADS, GROUPS, OUT, HIDDEN = 28, 7, 32, 2, 4, 2, 48, 64
"""[pixels] of a tile and of a patch; of InternViT and of the language model: width, layers, heads, key-value heads."""
TOKENS = (SIDE // PATCH // 2) ** 2
"""For each tile."""
ROWS = 512
THETA = 1e6
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
MOST = 12
"""Tiles of all images of a question."""
SHAPES = {"internvl-1.5": ("6b", "internlm2"), "internvl-2.5": ("300m", "internlm2")}
SHAPES |= {"internvl-2.5-26b": ("6b", "internlm2"), "internvl-2.5-1b": ("300m", "qwen2")}
"""The vision encoder and the language model of each: with the same templates 2.5 is published with any of these."""
SYSTEM = {
    "internlm2-chat": "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, "
    "是一个有用无害的人工智能助手。",
    "internvl2_5": "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的"
    "多模态大语言模型。",
}
END = {"internlm2-chat": "<|im_end|>", "internvl2_5": "<|im_end|>\n"}
"""Behind each message."""


def template_of(name: str) -> str:
    return "internlm2-chat" if name == "internvl-1.5" else "internvl2_5"


def words_of(name: str, kind: str = "bytes") -> Any:
    """InternLM2's tokenizers begin a text with <s>, Qwen2's with nothing."""
    marks = ("<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>")
    if kind == "pieces":
        return sentence_piece("first", *marks, bos="<s>")
    qwen = SHAPES[name][1] == "qwen2"
    return byte_level(*marks, bos=None if qwen else "<s>", adds_bos=not qwen)


def config_of(name: str) -> dict[str, Any]:
    big = SHAPES[name][0] == "6b"
    return {
        "architectures": ["InternVLChatModel"],
        "model_type": "internvl_chat",
        "downsample_ratio": 0.5,
        "dynamic_image_size": True,
        "force_image_size": SIDE,
        "max_dynamic_patch": MOST,
        "min_dynamic_patch": 1,
        "ps_version": "v2",
        "select_layer": -1,
        "template": template_of(name),
        "use_thumbnail": True,
        "vision_config": {
            "model_type": "intern_vit_6b",
            "hidden_act": "gelu",
            "hidden_size": WIDE,
            "image_size": SIDE,
            "intermediate_size": HIDDEN,
            "layer_norm_eps": 1e-6,
            "norm_type": "rms_norm" if big else "layer_norm",
            "num_attention_heads": HEADS,
            "num_hidden_layers": LAYERS,
            "patch_size": PATCH,
            "qk_normalization": big,
            "qkv_bias": not big,
        },
        "llm_config": {
            "architectures": ["Qwen2ForCausalLM" if SHAPES[name][1] == "qwen2" else "InternLM2ForCausalLM"],
            "model_type": SHAPES[name][1],
            "auto_map": {"AutoConfig": "configuration_internlm2.InternLM2Config"},
            "hidden_act": "silu",
            "hidden_size": OUT,
            "intermediate_size": HIDDEN,
            "max_position_embeddings": 4096,
            "num_attention_heads": HEADS,
            "num_hidden_layers": LAYERS,
            "num_key_value_heads": GROUPS,
            "rms_norm_eps": 1e-5,
            "rope_scaling": {"factor": 2.0, "type": "dynamic"},
            "rope_theta": THETA,
            "vocab_size": ROWS,
        },
    }


def weights_of(name: str) -> dict[str, Tensor]:
    """Under the published names, in the published shapes."""
    encoder, language = SHAPES[name]
    size, pairs = OUT // HEADS, OUT // HEADS * GROUPS
    shapes: dict[str, tuple[int, ...]] = {
        "vision_model.embeddings.class_embedding": (1, 1, WIDE),
        "vision_model.embeddings.position_embedding": (1, (SIDE // PATCH) ** 2 + 1, WIDE),
        "vision_model.embeddings.patch_embedding.weight": (WIDE, 3, PATCH, PATCH),
        "vision_model.embeddings.patch_embedding.bias": (WIDE,),
        **{f"mlp1.{i}.{part}": (4 * WIDE,) for i in (0,) for part in ("weight", "bias")},
        **{"mlp1.1.weight": (OUT, 4 * WIDE), "mlp1.1.bias": (OUT,), "mlp1.3.weight": (OUT, OUT), "mlp1.3.bias": (OUT,)},
    }
    for i in range(LAYERS):
        layer = f"vision_model.encoder.layers.{i}."
        linear = {"attn.qkv": (3 * WIDE, WIDE), "attn.proj": (WIDE, WIDE), "mlp.fc1": (HIDDEN, WIDE)}
        linear["mlp.fc2"] = (WIDE, HIDDEN)
        shapes |= {f"{layer}{part}.weight": shape for part, shape in linear.items()}
        shapes |= {f"{layer}{part}.bias": shape[:1] for part, shape in linear.items()}
        shapes |= {f"{layer}{part}": (WIDE,) for part in ("ls1", "ls2", "norm1.weight", "norm2.weight")}
        if encoder == "6b":
            del shapes[f"{layer}attn.qkv.bias"]
            shapes |= {f"{layer}attn.{part}_norm.weight": (WIDE,) for part in "qk"}
        else:
            shapes |= {f"{layer}norm{i}.bias": (WIDE,) for i in (1, 2)}
        layer = f"language_model.model.layers.{i}."
        if language == "internlm2":
            linear = {"attention.wqkv": (OUT + 2 * pairs, OUT), "attention.wo": (OUT, OUT)}
            linear |= {"feed_forward.w1": (HIDDEN, OUT), "feed_forward.w3": (HIDDEN, OUT)}
            linear["feed_forward.w2"] = (OUT, HIDDEN)
            norms = ("attention_norm", "ffn_norm")
        else:
            linear = {
                "self_attn.q_proj": (OUT, OUT),
                "self_attn.k_proj": (pairs, OUT),
                "self_attn.v_proj": (pairs, OUT),
            }
            shapes |= {f"{layer}{part}.bias": shape[:1] for part, shape in linear.items()}
            linear |= {"self_attn.o_proj": (OUT, OUT), "mlp.gate_proj": (HIDDEN, OUT), "mlp.up_proj": (HIDDEN, OUT)}
            linear["mlp.down_proj"] = (OUT, HIDDEN)
            norms = ("input_layernorm", "post_attention_layernorm")
        shapes |= {f"{layer}{part}.weight": shape for part, shape in linear.items()}
        shapes |= {f"{layer}{part}.weight": (OUT,) for part in norms}
    shapes["language_model.model.norm.weight"] = (OUT,)
    embedding, head = ("tok_embeddings", "output") if language == "internlm2" else ("embed_tokens", "lm_head")
    shapes |= {f"language_model.model.{embedding}.weight": (ROWS, OUT), f"language_model.{head}.weight": (ROWS, OUT)}
    assert size * HEADS == OUT
    generator = torch.Generator().manual_seed(3)
    return {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def save(name: str, folder: Path, words: Any = None, **changed: Any) -> None:
    """The published folder; `changed` are settings of its config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (words or words_of(name)).save_pretrained(folder)
    weights = weights_of(name)
    half = len(weights) // 2
    for number, names in enumerate((list(weights)[:half], list(weights)[half:]), 1):
        save_file({key: weights[key] for key in names}, folder / f"model-{number:05}-of-00002.safetensors")
    (folder / "config.json").write_text(json.dumps({**config_of(name), **changed}))


def grid_of(width: int, height: int, most: int = MOST, side: int = SIDE) -> tuple[int, int]:
    """Columns and rows: of all with at most so many tiles, fewest first, the first whose ratio is nearest; a later one
    that is as near in its place where the image has more than half of its pixels."""
    grids = {(c, r) for c in range(1, most + 1) for r in range(1, most + 1) if c * r <= most}
    best, nearest = (1, 1), math.inf
    for columns, rows in sorted(grids, key=lambda grid: grid[0] * grid[1]):
        off = abs(width / height - columns / rows)
        if off < nearest or (off == nearest and width * height > 0.5 * side * side * columns * rows):
            best, nearest = (columns, rows), off
    return best


def tiles_of(image: np.ndarray, images: int) -> list[np.ndarray]:
    """Levels (h w 3) of each tile of one of so many images, and of the whole where there are several."""
    picture = Image.fromarray(image)
    columns, rows = grid_of(*picture.size, max(1, MOST // images))
    large = picture.resize((columns * SIDE, rows * SIDE), Image.Resampling.BICUBIC)
    corners = [(c * SIDE, r * SIDE) for r in range(rows) for c in range(columns)]
    tiles = [np.asarray(large.crop((x, y, x + SIDE, y + SIDE))) for x, y in corners]
    whole = [np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC))] if len(tiles) > 1 else []
    return tiles + whole


def pixels_of(tiles: Sequence[np.ndarray]) -> Tensor:
    """(n 3 h w)"""
    levels = torch.from_numpy(np.stack(tiles)).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return (levels - mean) / std


def text_of(name: str, tiles: Sequence[int], turns: Sequence[tuple[str, str | None]]) -> str:
    """A conversation about images of so many tiles; a turn without an answer asks for one."""
    template = template_of(name)
    several = [f"Image-{number}: " if len(tiles) > 1 else "" for number in range(1, len(tiles) + 1)]
    before = "".join(
        f"{label}<img>{'<IMG_CONTEXT>' * TOKENS * count}</img>\n" for label, count in zip(several, tiles, strict=True)
    )
    text = f"<|im_start|>system\n{SYSTEM[template]}{END[template]}"
    for question, answer in turns:
        text += f"<|im_start|>user\n{before}{question}{END[template]}<|im_start|>assistant\n"
        text += "" if answer is None else f"{answer}{END[template]}"
        before = ""
    return text


def sight(name: str, weights: dict[str, Tensor], pixels: Tensor) -> Tensor:
    """Tokens (n t d) of tiles (n 3 h w): InternViT, a pixel shuffle, and the MLP."""

    def at(key: str) -> Tensor:
        return weights[f"vision_model.{key}"]

    big = SHAPES[name][0] == "6b"

    def normed(x: Tensor, key: str) -> Tensor:
        return (
            rms(x, at(f"{key}.weight"), 1e-6)
            if big
            else layer_norm(x, (WIDE,), at(f"{key}.weight"), at(f"{key}.bias"), 1e-6)
        )

    patches = conv2d(pixels, at("embeddings.patch_embedding.weight"), at("embeddings.patch_embedding.bias"), PATCH)
    x = torch.cat([at("embeddings.class_embedding").expand(len(pixels), 1, WIDE), patches.flatten(2).mT], 1)
    x = x + at("embeddings.position_embedding")
    for i in range(LAYERS):
        layer = f"encoder.layers.{i}"
        inner = normed(x, f"{layer}.norm1") @ at(f"{layer}.attn.qkv.weight").T
        query, key, value = (inner if big else inner + at(f"{layer}.attn.qkv.bias")).chunk(3, -1)
        if big:
            query, key = (rms(y, at(f"{layer}.attn.{n}_norm.weight"), 1e-6) for n, y in (("q", query), ("k", key)))
        query, key, value = (y.unflatten(-1, (HEADS, -1)).transpose(1, 2) for y in (query, key, value))
        weight = softmax(query @ key.mT / math.sqrt(WIDE // HEADS), -1)
        seen = (weight @ value).transpose(1, 2).flatten(2)
        x = x + at(f"{layer}.ls1") * (seen @ at(f"{layer}.attn.proj.weight").T + at(f"{layer}.attn.proj.bias"))
        inner = gelu(normed(x, f"{layer}.norm2") @ at(f"{layer}.mlp.fc1.weight").T + at(f"{layer}.mlp.fc1.bias"))
        x = x + at(f"{layer}.ls2") * (inner @ at(f"{layer}.mlp.fc2.weight").T + at(f"{layer}.mlp.fc2.bias"))
    rows = x[:, 1:].unflatten(1, (SIDE // PATCH, SIDE // PATCH))
    # A token has its four patches row by row.
    blocks = [rows[:, r::2, c::2] for r in (0, 1) for c in (0, 1)]
    x = layer_norm(torch.cat(blocks, -1).flatten(1, 2), (4 * WIDE,), weights["mlp1.0.weight"], weights["mlp1.0.bias"])
    x = gelu(x @ weights["mlp1.1.weight"].T + weights["mlp1.1.bias"])
    return x @ weights["mlp1.3.weight"].T + weights["mlp1.3.bias"]


def rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)


def turned(x: Tensor) -> Tensor:
    """Rotary positions of x (heads l d), the two halves of d being the two parts of each pair."""
    size = x.shape[-1]
    angles = torch.arange(x.shape[1])[:, None] / THETA ** (torch.arange(0, size, 2) / size)
    first, second = x.chunk(2, -1)
    return torch.cat([first * angles.cos() - second * angles.sin(), second * angles.cos() + first * angles.sin()], -1)


def speech(name: str, weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """Logits (l rows) of embeddings (l d): InternLM2 or Qwen2."""
    own, size = SHAPES[name][1] == "internlm2", OUT // HEADS
    for i in range(LAYERS):
        part = {
            key.partition(f"layers.{i}.")[2]: value for key, value in weights.items() if f"model.layers.{i}." in key
        }
        if own:
            # Of each key-value head: its queries, its key and its value.
            inner = (rms(x, part["attention_norm.weight"], 1e-5) @ part["attention.wqkv.weight"].T).unflatten(
                -1, (GROUPS, HEADS // GROUPS + 2, size)
            )
            query, key, value = inner[:, :, :-2].flatten(1, 2), inner[:, :, -2], inner[:, :, -1]
        else:
            inner = rms(x, part["input_layernorm.weight"], 1e-5)
            query, key, value = (
                (inner @ part[f"self_attn.{n}_proj.weight"].T + part[f"self_attn.{n}_proj.bias"]).unflatten(
                    -1, (-1, size)
                )
                for n in "qkv"
            )
        query, key = turned(query.transpose(0, 1)), turned(key.transpose(0, 1))
        key, value = (y.repeat_interleave(HEADS // GROUPS, 0) for y in (key, value.transpose(0, 1)))
        later = torch.ones(len(x), len(x), dtype=torch.bool).triu(1)
        seen = softmax((query @ key.mT / math.sqrt(size)).masked_fill(later, -math.inf), -1) @ value
        seen = seen.transpose(0, 1).flatten(1)
        x = x + seen @ part["attention.wo.weight" if own else "self_attn.o_proj.weight"].T
        inner = rms(x, part["ffn_norm.weight" if own else "post_attention_layernorm.weight"], 1e-5)
        gate, up, down = (
            part[f"feed_forward.w{n}.weight" if own else f"mlp.{n}_proj.weight"]
            for n in ((1, 3, 2) if own else ("gate", "up", "down"))
        )
        x = x + (silu(inner @ gate.T) * (inner @ up.T)) @ down.T
    x = rms(x, weights["language_model.model.norm.weight"], 1e-5)
    return x @ weights["language_model.output.weight" if own else "language_model.lm_head.weight"].T


def logits_of(name: str, ids: Sequence[int], image: int, pixels: Tensor | None) -> Tensor:
    """(l rows)"""
    weights, tokens = weights_of(name), torch.tensor(ids)
    kind = "tok_embeddings" if SHAPES[name][1] == "internlm2" else "embed_tokens"
    embeds = weights[f"language_model.model.{kind}.weight"][tokens]
    if pixels is not None:
        embeds[tokens == image] = sight(name, weights, pixels).flatten(0, 1)
    return speech(name, weights, embeds)
