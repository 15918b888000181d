"""Molmo and MolmoE: the backbone contract, released weights against a plain reading of the original."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from backbones import check_backbone
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, layer_norm, pad, silu
from transformers import PreTrainedTokenizerFast

from vla.errors import InputError
from vla.models.backbone_inputs import DecoderInput, ImageInput
from vla.models.backbones import families
from vla.models.backbones.build import build
from vla.models.backbones.molmo import Molmo, load
from vla.models.batch import Shown, _collate_images, allocate_frames
from vla.models.preprocessing.markup import Markup
from vla.models.preprocessing.molmo_crops import Crops, token_grid
from vla.models.preprocessing.settings import Preprocessing

TEXT, VISION, PATCH, SIDE, ROWS, EXTRA = 32, 128, 7, 28, 96, 8
HEADS, EXPERTS, CHOSEN, MLP, POOLED = 4, 6, 2, 48, 40
KINDS = ("qwen2", "olmo2", "olmoe")
PATCH_ID, START, END, COLUMN = 96, 97, 98, 99
"""<im_patch>, <im_start>, <im_end> and <im_col>: among the extra rows."""


def config_of(kind: str) -> dict[str, Any]:
    model = {
        "model_type": kind,
        "vocab_size": ROWS,
        "hidden_size": TEXT,
        "intermediate_size": MLP,
        "num_hidden_layers": 2,
        "num_attention_heads": HEADS,
        "num_key_value_heads": 2 if kind == "qwen2" else HEADS,
        "pad_token_id": None,
    }
    if kind == "olmoe":
        model |= {"num_experts": EXPERTS, "num_experts_per_tok": CHOSEN}
    vision = {
        "layers": [-1, -2],
        "hidden_size": VISION,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": SIDE,
        "patch_size": PATCH,
        "hidden_act": "quick_gelu",
    }
    size = {"image_size": SIDE, "mean": [0.5, 0.4, 0.3], "std": [0.25, 0.25, 0.25]}
    rest = {"image_token_id": PATCH_ID, "mlp": POOLED, "extra_rows": EXTRA, "head_rows": ROWS}
    return {"family": "molmo", "model": model, "vision": vision, **size, **rest}


def released_config(kind: str) -> dict[str, Any]:
    """As in config.json: Molmo's names, or MolmoE's."""
    common = {"model_type": "molmo", "layer_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 512}
    if kind == "olmoe":
        return common | {"n_heads": HEADS, "moe_top_k": CHOSEN, "norm_after": False, "vit_layers": [-1, -2]}
    kv = 2 if kind == "qwen2" else None
    names = {"num_attention_heads": HEADS, "num_key_value_heads": kv, "vit_layers": [-1, -2]}
    return common | names | {"norm_after": kind == "olmo2"}


def released_shapes(kind: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the released weights, at tiny sizes."""
    text, eyes = "model.transformer.", "model.vision_backbone."
    kv = TEXT // 2 if kind == "qwen2" else TEXT
    shapes: dict[str, tuple[int, ...]] = {
        text + "wte.embedding": (ROWS, TEXT),
        text + "wte.new_embedding": (EXTRA, TEXT),
        text + "ln_f.weight": (TEXT,),
        text + "ff_out.weight": (ROWS, TEXT),
        eyes + "pad_embed": (2, 2 * VISION),
        eyes + "image_pooling_2d.wo.weight": (VISION, VISION),
        eyes + "image_pooling_2d.wo.bias": (VISION,),
        eyes + "image_projector.w1.weight": (POOLED, VISION),
        eyes + "image_projector.w2.weight": (TEXT, POOLED),
        eyes + "image_projector.w3.weight": (POOLED, VISION),
        eyes + "image_vit.class_embedding": (VISION,),
        eyes + "image_vit.positional_embedding": (1 + (SIDE // PATCH) ** 2, VISION),
        eyes + "image_vit.patch_embedding.weight": (VISION, 3 * PATCH**2),
        eyes + "image_vit.pre_ln.weight": (VISION,),
        eyes + "image_vit.pre_ln.bias": (VISION,),
    }
    for part in "qkv":
        shapes[eyes + f"image_pooling_2d.w{part}.weight"] = (VISION, 2 * VISION)
        shapes[eyes + f"image_pooling_2d.w{part}.bias"] = (VISION,)
    for i in range(2):
        block = text + f"blocks.{i}."
        attn, mlp = (block + "attn.", block + "mlp.") if kind == "olmoe" else (block, block)
        shapes |= {attn + "att_proj.weight": (TEXT + 2 * kv, TEXT), attn + "attn_out.weight": (TEXT, TEXT)}
        shapes |= {attn + "attn_norm.weight": (TEXT,), mlp + "ff_norm.weight": (TEXT,)}
        if kind == "qwen2":
            shapes[attn + "att_proj.bias"] = (TEXT + 2 * kv,)
        else:
            shapes |= {attn + "q_norm.weight": (TEXT,), attn + "k_norm.weight": (TEXT,)}
        if kind == "olmoe":
            shapes[mlp + "gate.weight"] = (EXPERTS, TEXT)
            for e in range(EXPERTS):
                shapes |= {mlp + f"experts.{e}.{p}_proj.weight": (MLP, TEXT) for p in ("gate", "up")}
                shapes[mlp + f"experts.{e}.down_proj.weight"] = (TEXT, MLP)
        else:
            shapes |= {mlp + "ff_proj.weight": (2 * MLP, TEXT), mlp + "ff_out.weight": (TEXT, MLP)}
        layer = eyes + f"image_vit.transformer.resblocks.{i}."
        for part in "qkvo":
            shapes[layer + f"attention.w{part}.weight"] = (VISION, VISION)
            shapes[layer + f"attention.w{part}.bias"] = (VISION,)
        for kept in ("weight", "bias"):
            shapes |= {layer + f"{norm}.{kept}": (VISION,) for norm in ("attention_norm", "ffn_norm")}
        shapes |= {layer + "feed_forward.w1.weight": (64, VISION), layer + "feed_forward.w1.bias": (64,)}
        shapes |= {layer + "feed_forward.w2.weight": (VISION, 64), layer + "feed_forward.w2.bias": (VISION,)}
    return shapes


def released(kind: str) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) * 0.1 for name, shape in released_shapes(kind).items()}


def save(folder: Path, weights: dict[str, Tensor], config: dict[str, Any], marks: tuple[str, ...]) -> None:
    """As released, in two shards, with a tokenizer whose last tokens are `marks`."""
    names = sorted(weights)
    for i, part in enumerate((names[::2], names[1::2]), 1):
        save_file({name: weights[name] for name in part}, folder / f"model-0000{i}-of-00002.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    words = [*(f"w{i}" for i in range(ROWS)), *marks]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens([AddedToken(mark) for mark in marks])
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="w0").save_pretrained(folder)


MARKS = ("<im_patch>", "<im_start>", "<im_end>", "<im_col>")


def sight(weights: dict[str, Tensor], pixels: Tensor, inside: Tensor) -> Tensor:
    """Features (t d) of one image whose patches are `inside` in part: the original read plainly."""

    def get(name: str) -> Tensor:
        return weights["model.vision_backbone." + name]

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ get(name + ".weight").T + get(name + ".bias")

    def attention(queries: Tensor, keys: Tensor, name: str) -> Tensor:
        q, k, v = linear(queries, name + "wq"), linear(keys, name + "wk"), linear(keys, name + "wv")
        parts = zip(*(x.split(64, -1) for x in (q, k, v)), strict=True)
        return linear(torch.cat([(q @ k.T / 8).softmax(-1) @ v for q, k, v in parts], -1), name + "wo")

    def norm(x: Tensor, name: str) -> Tensor:
        return layer_norm(x, x.shape[-1:], get(name + ".weight"), get(name + ".bias"), 1e-5)

    side = SIDE // PATCH
    # Each patch is a row of pixels, each pixel its three colours.
    cut_up = pixels.permute(1, 2, 0).reshape(side, PATCH, side, PATCH, 3).transpose(1, 2).reshape(side**2, -1)
    x = cut_up @ get("image_vit.patch_embedding.weight").T
    x = torch.cat([get("image_vit.class_embedding")[None], x]) + get("image_vit.positional_embedding")
    x, states = norm(x, "image_vit.pre_ln"), []
    for i in range(2):
        layer = f"image_vit.transformer.resblocks.{i}."
        y = norm(x, layer + "attention_norm")
        x = x + attention(y, y, layer + "attention.")
        y = linear(norm(x, layer + "ffn_norm"), layer + "feed_forward.w1")
        x = x + linear(y * torch.sigmoid(1.702 * y), layer + "feed_forward.w2")
        states.append(x)
    x = torch.cat([states[-1], states[-2]], -1)[1:]
    x = x + (inside == 0)[:, None] * get("pad_embed")[0]
    x = x + ((inside < 1) & (inside != 0))[:, None] * get("pad_embed")[1]
    x = x.reshape(side, side, -1)
    tokens = []
    for row in range(0, side, 2):
        for column in range(0, side, 2):
            window = x[row : row + 2, column : column + 2].reshape(4, -1)
            tokens.append(attention(window.mean(0, keepdim=True), window, "image_pooling_2d."))
    pooled = torch.cat(tokens)
    gate, down, up = (get(f"image_projector.w{i}.weight").T for i in (1, 2, 3))
    return (silu(pooled @ gate) * (pooled @ up)) @ down


def speech(weights: dict[str, Tensor], x: Tensor, kind: str) -> Tensor:
    """Logits (l v) of embeddings (l d): the original's decoder read plainly."""

    def get(name: str) -> Tensor:
        return weights["model.transformer." + name]

    def norm(x: Tensor, name: str) -> Tensor:
        return x * (x.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * get(name + ".weight")

    size, kv = TEXT // HEADS, 2 if kind == "qwen2" else HEADS
    angles = torch.arange(len(x))[:, None] * 10_000.0 ** -(torch.arange(0, size, 2) / size)
    cos, sin = torch.cat([angles, angles], -1).cos(), torch.cat([angles, angles], -1).sin()

    def turned(x: Tensor) -> Tensor:
        first, second = x.chunk(2, -1)
        return x * cos + torch.cat([-second, first], -1) * sin

    def attention(x: Tensor, block: str) -> Tensor:
        mixed = x @ get(block + "att_proj.weight").T
        if kind == "qwen2":
            mixed = mixed + get(block + "att_proj.bias")
        q, k, v = mixed.split([TEXT, kv * size, kv * size], -1)
        if kind != "qwen2":
            q, k = norm(q, block + "q_norm"), norm(k, block + "k_norm")
        future = torch.ones(len(x), len(x), dtype=torch.bool).triu(1)
        seen = []
        for head in range(HEADS):
            ours = slice(head * size, (head + 1) * size)
            theirs = slice(head * kv // HEADS * size, (head * kv // HEADS + 1) * size)
            scores = turned(q[:, ours]) @ turned(k[:, theirs]).T / size**0.5
            seen.append(scores.masked_fill(future, -torch.inf).softmax(-1) @ v[:, theirs])
        return torch.cat(seen, -1) @ get(block + "attn_out.weight").T

    def experts(x: Tensor, block: str) -> Tensor:
        out = torch.zeros_like(x)
        for i, row in enumerate(x):
            weight, chosen = (row @ get(block + "gate.weight").T).softmax(-1).topk(CHOSEN)
            for w, e in zip(weight, chosen, strict=True):
                gate, up, down = (get(f"{block}experts.{e}.{p}_proj.weight").T for p in ("gate", "up", "down"))
                out[i] += w * ((silu(row @ gate) * (row @ up)) @ down)
        return out

    def mlp(x: Tensor, block: str) -> Tensor:
        first, gate = (x @ get(block + "ff_proj.weight").T).chunk(2, -1)
        return (silu(gate) * first) @ get(block + "ff_out.weight").T

    for i in range(2):
        block = f"blocks.{i}."
        if kind == "olmo2":
            x = x + norm(attention(x, block), block + "attn_norm")
            x = x + norm(mlp(x, block), block + "ff_norm")
        elif kind == "olmoe":
            x = x + attention(norm(x, block + "attn.attn_norm"), block + "attn.")
            x = x + experts(norm(x, block + "mlp.ff_norm"), block + "mlp.")
        else:
            x = x + attention(norm(x, block + "attn_norm"), block)
            x = x + mlp(norm(x, block + "ff_norm"), block)
    return norm(x, "ln_f") @ get("ff_out.weight").T


@pytest.mark.parametrize("kind", KINDS)
def test_keeps_the_contract(kind: str) -> None:
    check_backbone(lambda: build(config_of(kind)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_released_folder_says_what_the_original_says(kind: str, tmp_path: Path) -> None:
    weights = released(kind)
    save(tmp_path, weights, released_config(kind), MARKS)
    backbone, tokenizer = families.load(tmp_path)
    assert isinstance(backbone, Molmo)
    backbone.eval()
    assert (backbone.image_size, backbone.vocab_size) == (SIDE, ROWS + EXTRA)
    pixels = torch.randn(1, 1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    row = [PATCH_ID, PATCH_ID, COLUMN]
    written = [5, START, *row, *row, END, 6, 7]
    assert backbone.tokens_per_image == 4
    with torch.no_grad():
        vision = backbone.encode_images(ImageInput(pixels, torch.tensor([[True]])))
        expected = sight(weights, pixels[0, 0], torch.ones(16))
        assert vision is not None
        torch.testing.assert_close(vision.features, expected, atol=1e-5, rtol=1e-4)
        embeds = backbone.embed(torch.tensor([written]), vision)
        table = torch.cat([weights[f"model.transformer.wte.{new}embedding"] for new in ("", "new_")])
        plain = table[written]
        plain[torch.tensor(written) == PATCH_ID] += expected
        torch.testing.assert_close(embeds[0], plain, atol=1e-5, rtol=1e-4)
        logits = backbone.logits(backbone.forward(DecoderInput(embeds, torch.ones(1, len(written)).bool()))[0])[0]
        torch.testing.assert_close(logits[:, :ROWS], speech(weights, plain, kind), atol=1e-4, rtol=1e-4)
    assert (logits[:, ROWS:] < -1e30).all()  # rows of the embedding that the head does not have
    assert tokenizer.decode([5, 6]) == "w5 w6"


def test_the_released_size() -> None:
    """Molmo-7B-D's index of shards tells 32 084 101 120 bytes, of four each."""
    sizes = {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28}
    clip = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16}
    config = config_of("qwen2")
    config["model"] |= sizes | {"vocab_size": 152064, "num_key_value_heads": 4}
    config["vision"] |= clip | {"image_size": 336, "patch_size": 14}
    with torch.device("meta"):
        backbone: Any = build(config | {"mlp": 18944, "extra_rows": 128, "head_rows": 152064, "image_size": 336})
    assert sum(4 * weight.numel() for weight in backbone.parameters()) == 32_084_101_120
    assert backbone.tokens_per_image == 144


def test_a_weight_too_many_or_too_few_is_named(tmp_path: Path) -> None:
    weights = released("qwen2")
    save(tmp_path, weights | {"model.transformer.new.weight": torch.zeros(1)}, released_config("qwen2"), MARKS)
    with pytest.raises(InputError, match=r"transformer\.new\.weight is not a weight"):
        load(tmp_path)
    save(tmp_path, weights, released_config("qwen2"), ("<im_patch>", "<im_start>"))
    with pytest.raises(InputError, match="has no im_col, im_end"):
        load(tmp_path)
    del weights["model.vision_backbone.pad_embed"]
    save(tmp_path, weights, released_config("qwen2"), MARKS)
    with pytest.raises(InputError, match=r"connector\.pad"):
        load(tmp_path)
    save(tmp_path, released("qwen2"), released_config("qwen2"), MARKS)
    with pytest.raises(InputError, match="21 pixels do not divide into windows of 14"):
        load(tmp_path, image_size=21)
    with pytest.raises(InputError, match=r"no wte\.embedding"):
        save_file({"other": torch.zeros(1)}, tmp_path / "model-00001-of-00002.safetensors")
        (tmp_path / "model-00002-of-00002.safetensors").unlink()
        load(tmp_path)


@pytest.mark.parametrize("size", [(84, 128), (333, 97), (40, 60)])
def test_an_image_is_read_whole_and_in_crops(size: tuple[int, int], tmp_path: Path) -> None:
    """Beside one of another shape: frames, padding, tokens and their order as the original read plainly."""
    weights = released("qwen2")
    save(tmp_path, weights, released_config("qwen2"), MARKS)
    big = 12 * PATCH  # a crop needs more than its margins
    backbone, _ = load(tmp_path, image_size=big)
    images = Preprocessing(Crops(big, PATCH), Markup("<im_start>", "<im_col>", "<im_col><im_end>", cell=14, overlap=2))
    photos = [np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8) for shape in ((100, 50), size)]
    views = [images.framing.view(*photo.shape[:2]) for photo in photos]
    rows, columns = (n * 2 + 4 for n in views[1].grid)
    parts = list(images.markup.parts(views[1]))
    assert [part for part in parts if isinstance(part, int)] == [6] * 6 + [columns] * rows
    assert "".join(map(str, parts)).count("<im_col>") == 6 + rows
    shown = [[Shown(photo, view)] for photo, view in zip(photos, views, strict=True)]
    pixels, mask, content, tiling = (torch.from_numpy(x) for x in _collate_images(shown, (big, big), allocate_frames))
    values = (pixels / 255 - torch.tensor(backbone.mean)) / torch.tensor(backbone.std)
    whole, canvas, inside = plain_crops(photos[1], big, views[1].grid)
    frames = torch.cat([whole[None], canvas])
    assert (pixels[1, : len(frames)].permute(0, 3, 1, 2) / 255 - frames).abs().max() <= 1 / 255 + 1e-6
    with torch.no_grad():
        vision = backbone.encode_images(ImageInput(values.movedim(-1, 2), mask, content, tiling))
        told = torch.cat([inside, torch.full((1, 144), -1.0)])
        own = values[1, : len(frames)].permute(0, 3, 1, 2)
        features = backbone.connector(backbone.vision(own), told).flatten(0, 1)
    order = torch.cat([torch.arange(36), token_grid(*views[1].grid, 6, 2).flatten()])
    assert vision is not None
    torch.testing.assert_close(vision.features[-len(order) :], features[order], atol=1e-5, rtol=1e-5)


def plain_crops(image: np.ndarray, size: int, grid: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """The original read plainly: the whole (3 s s), the crops (n 3 s s), and how much of their patches is image."""

    def padded(height: int, width: int) -> tuple[Tensor, Tensor]:
        scale = min(np.float32(height) / np.float32(image.shape[0]), np.float32(width) / np.float32(image.shape[1]))
        y, x = (int(np.float32(side) * scale) for side in image.shape[:2])
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None] / 255
        small = interpolate(pixels, (y, x), mode="bilinear", antialias=True).clamp(0, 1)[0]
        top, left = (height - y) // 2, (width - x) // 2
        border = (left, width - x - left, top, height - y - top)
        return pad(small, border), pad(torch.ones(1, y, x), border)

    margin = 4 * PATCH
    window = size - 2 * margin
    canvas, mask = padded(grid[0] * window + 2 * margin, grid[1] * window + 2 * margin)
    starts = [(i * window, j * window) for i in range(grid[0]) for j in range(grid[1])]
    crops = torch.stack([canvas[:, y : y + size, x : x + size] for y, x in starts])
    masks = torch.stack([mask[:, y : y + size, x : x + size] for y, x in starts])
    return padded(size, size)[0], crops, avg_pool2d(masks, PATCH).flatten(1)


def test_padding_is_told_by_two_embeddings(tmp_path: Path) -> None:
    weights = released("qwen2")
    save(tmp_path, weights, released_config("qwen2"), MARKS)
    backbone, _ = load(tmp_path)
    pixels = torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(2))
    inside = torch.tensor([0.0, 1.0, 0.5, -1.0] * 4)
    with torch.no_grad():
        features = backbone.connector(backbone.vision(pixels), inside[None])[0]
    torch.testing.assert_close(features, sight(weights, pixels[0], inside), atol=1e-5, rtol=1e-4)
