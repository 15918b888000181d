"""Qwen-VL, version 1: ViT-bigG, one cross-attention layer with 256 queries, and Qwen-7B (Bai et al. 2023)."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from torch import Tensor, nn
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from vla.errors import InputError
from vla.models.backbones.own_family import OwnFamily, Rule, converted, filled, released_config, released_weights

CELLS = 256
"""Number of learned positions of the released ViT (16 x 16), and of queries."""
EPSILON = 1e-6
HEAD = 128
"""Width of a cross-attention head."""


class VisionTower(nn.Module):
    """A ViT without a class token, whose learned positions of a square grid of `cells` are resized to the image."""

    def __init__(self, width: int, layers: int, heads: int, mlp_ratio: float, patch_size: int, cells: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, patch_size, patch_size, bias=False)
        self.positions = nn.Parameter(torch.empty(cells, width).normal_(std=width**-0.5))
        self.norm = nn.LayerNorm(width, EPSILON)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, heads, int(width * mlp_ratio), 0.0, "gelu", EPSILON, batch_first=True, norm_first=True
            )
            for _ in range(layers)
        )

    def forward(self, pixels: Float[Tensor, "n 3 h h"]) -> Float[Tensor, "n p c"]:
        """The features of each patch, in row-major order."""
        x = self.patches(pixels).flatten(2).transpose(1, 2)
        x = self.norm(x + resized(self.positions, x.shape[1]))
        for layer in self.layers:
            x = layer(x)
        return x


class Resampler(nn.Module):
    """Cross-attention of a square of learned queries to all patches, with positions in queries and keys."""

    positions: Tensor

    def __init__(self, width: int, out: int, cells: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.empty(cells, out).normal_(std=0.02))
        self.register_buffer("positions", grid_waves(round(cells**0.5), out))
        self.kv = nn.Identity() if width == out else nn.Linear(width, out, bias=False)
        self.norm_query, self.norm_kv, self.norm = (nn.LayerNorm(out, EPSILON) for _ in range(3))
        self.attention = nn.MultiheadAttention(out, max(1, out // HEAD), batch_first=True)
        self.project = nn.Linear(out, out, bias=False)

    def forward(self, features: Float[Tensor, "n p c"]) -> Float[Tensor, "n t d"]:
        """The tokens of each image, one per query."""
        values = self.norm_kv(self.kv(features))
        queries = (self.norm_query(self.query) + self.positions).expand(len(values), -1, -1)
        keys = values + resized(self.positions, values.shape[1])
        return self.project(self.norm(self.attention(queries, keys, values, need_weights=False)[0]))


class QwenVL(OwnFamily):
    """Qwen-VL; `vision` has width, layers, heads, mlp_ratio and patch_size of the ViT, and the number of `cells`.

    The decoder is Qwen2's with as many key-value heads as query heads. It equals the original up to the 2048 tokens of
    its training; the extensions for longer texts (dynamic NTK, log-n attention) are not implemented.
    """

    name = "qwen_vl"

    def __init__(self, model: Mapping[str, Any], vision: Mapping[str, Any], **kwargs: Any) -> None:
        super().__init__(model, vision, **kwargs)
        if self.image_size % vision["patch_size"]:
            raise InputError(f"images of {self.image_size} pixels do not divide into patches of {vision['patch_size']}")
        self.vision = VisionTower(**vision)
        self.connector = Resampler(vision["width"], self.hidden_size, vision["cells"])

    def image_grid(self) -> tuple[int, int]:
        """See `HFBackbone.image_grid`."""
        return 1, self.vision_config["cells"]


def resized(positions: Float[Tensor, "p c"], count: int) -> Float[Tensor, "q c"]:
    """A square grid of position embeddings, resized to `count` cells (bicubic)."""
    if len(positions) == count:
        return positions
    old, new = round(len(positions) ** 0.5), round(count**0.5)
    grid = positions.float().T.unflatten(1, (old, old))[None]
    return nn.functional.interpolate(grid, (new, new), mode="bicubic")[0].flatten(1).T.to(positions.dtype)


def grid_waves(side: int, size: int) -> Float[Tensor, "p c"]:
    """Sines and cosines, `size` / 4 each, of the column and then of the row of each cell (as in MAE)."""
    frequencies = 10_000.0 ** -(torch.arange(size // 4, dtype=torch.float64) / (size // 4))
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    angles = [axis.reshape(-1, 1) * frequencies for axis in (x, y)]
    return torch.cat([f(a) for a in angles for f in (torch.sin, torch.cos)], 1).to(torch.get_default_dtype())


def load(
    folder: str | Path, image_size: int | None = None, dtype: torch.dtype = torch.float32
) -> tuple[QwenVL, PreTrainedTokenizerFast]:
    """Loads Qwen-VL or Qwen-VL-Chat and its tokenizer from a folder with the released files (weights as safetensors).

    Raises:
        InputError: when the folder does not contain them.
    """
    config = released_config(folder, model_type="qwen")
    if "visual" not in config:
        raise InputError(f"{folder} is Qwen without images: its config.json has no 'visual'")
    visual, heads = config["visual"], config["num_attention_heads"]
    weights = converted(released_weights(folder), rules(visual["heads"]))
    language = {
        "model_type": "qwen2",
        "vocab_size": config["vocab_size"],
        "hidden_size": config["hidden_size"],
        "intermediate_size": config["intermediate_size"] // 2,
        "num_hidden_layers": config["num_hidden_layers"],
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "rms_norm_eps": config["layer_norm_epsilon"],
        "rope_parameters": {"rope_type": "default", "rope_theta": config["rotary_emb_base"]},
        "max_position_embeddings": config["seq_length"],
    }
    vision = {name: visual[name] for name in ("width", "layers", "heads", "mlp_ratio", "patch_size")}
    arguments = {
        "model": language,
        "vision": vision | {"cells": visual.get("n_queries", CELLS)},
        "image_token_id": visual["image_start_id"] + 2,
        "image_size": image_size or visual["image_size"],
    }
    return filled(QwenVL, arguments, weights, dtype), read_tokenizer(folder)


def rules(heads: int) -> list[Rule]:
    """Rules from released names to ours; the ViT's queries, keys and values are interleaved per head."""

    def by_kind(weight: Tensor) -> Sequence[Tensor]:
        return (weight.unflatten(0, (heads, 3, -1)).transpose(0, 1).flatten(0, 2),)

    layer, ours = r"transformer\.h\.(\d+)\.", r"model.model.layers.\1."
    block, vit = r"transformer\.visual\.transformer\.resblocks\.(\d+)\.", r"vision.layers.\1."
    visual, pool = r"transformer\.visual\.", r"transformer\.visual\.attn_pool\."
    attention = tuple(ours + rf"self_attn.{kind}_proj.\2" for kind in "qkv")
    return [
        Rule(r"transformer\.wte\.weight", ("model.model.embed_tokens.weight",)),
        Rule(r"transformer\.ln_f\.weight", ("model.model.norm.weight",)),
        Rule(r"lm_head\.weight", ("model.lm_head.weight",)),
        Rule(layer + r"ln_1\.weight", (ours + "input_layernorm.weight",)),
        Rule(layer + r"ln_2\.weight", (ours + "post_attention_layernorm.weight",)),
        Rule(layer + r"attn\.c_attn\.(weight|bias)", attention, lambda weight: weight.chunk(3)),
        Rule(layer + r"attn\.c_proj\.weight", (ours + "self_attn.o_proj.weight",)),
        Rule(layer + r"mlp\.w1\.weight", (ours + "mlp.up_proj.weight",)),
        Rule(layer + r"mlp\.w2\.weight", (ours + "mlp.gate_proj.weight",)),
        Rule(layer + r"mlp\.c_proj\.weight", (ours + "mlp.down_proj.weight",)),
        Rule(visual + r"conv1\.weight", ("vision.patches.weight",)),
        Rule(visual + r"positional_embedding", ("vision.positions",)),
        Rule(visual + r"ln_pre\.(weight|bias)", (r"vision.norm.\1",)),
        Rule(block + r"ln_(1|2)\.(weight|bias)", (vit + r"norm\2.\3",)),
        Rule(block + r"attn\.in_proj\.(weight|bias)", (vit + r"self_attn.in_proj_\2",), by_kind),
        Rule(block + r"attn\.out_proj\.(weight|bias)", (vit + r"self_attn.out_proj.\2",)),
        Rule(block + r"mlp\.c_fc\.(weight|bias)", (vit + r"linear1.\2",)),
        Rule(block + r"mlp\.c_proj\.(weight|bias)", (vit + r"linear2.\2",)),
        Rule(pool + r"query", ("connector.query",)),
        Rule(pool + r"pos_embed", ("connector.positions",)),
        Rule(pool + r"kv_proj\.weight", ("connector.kv.weight",)),
        Rule(pool + r"ln_q\.(weight|bias)", (r"connector.norm_query.\1",)),
        Rule(pool + r"ln_kv\.(weight|bias)", (r"connector.norm_kv.\1",)),
        Rule(
            pool + r"attn\.(in_proj_weight|in_proj_bias|out_proj\.weight|out_proj\.bias)", (r"connector.attention.\1",)
        ),
        Rule(visual + r"ln_post\.(weight|bias)", (r"connector.norm.\1",)),
        Rule(visual + r"proj", ("connector.project.weight",), lambda weight: (weight.T,)),
    ]


WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Pre-tokenisation pattern of Qwen's tokenizer."""
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205))]
VISUAL = ["<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>", "<img>", "</img>", "<imgpad>"]


def read_tokenizer(folder: str | Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a Qwen-VL folder, from the released qwen.tiktoken: each line is a token in base64 and its rank.

    Raises:
        InputError: when there is no such file.
    """
    file = Path(folder) / "qwen.tiktoken"
    if not file.is_file():
        raise InputError(f"{folder} has no qwen.tiktoken: it belongs to the released files")
    letters = bytes_to_unicode()
    lines = [line.split() for line in file.read_text().splitlines() if line]
    ranks = {"".join(letters[byte] for byte in base64.b64decode(token)): int(rank) for token, rank in lines}
    # Two tokens merge at the rank of the resulting token; every split of it into two tokens is a merge.
    merges = [
        (token[:i], token[i:])
        for token in sorted(ranks, key=ranks.__getitem__)
        for i in range(1, len(token))
        if token[:i] in ranks and token[i:] in ranks
    ]
    tokenizer = Tokenizer(models.BPE(ranks, merges, ignore_merges=True))
    tokenizer.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(WORDS), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in (*SPECIAL, *VISUAL)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=SPECIAL[0], eos_token=SPECIAL[0], clean_up_tokenization_spaces=False
    )
