"""Small random checkpoints of OpenVLA and OpenVLA-OFT in the published layout, and a plain reading of them.

The reading is written from the published description (torch only, none of the package's code).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from PIL import Image
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
from torch import Tensor

WORDS, PADDING, BINS = 640, 64, 256
"""Tokens of the vocabulary without the rows that pad it."""
SIDE, PATCH = 28, 14
DINO, SIGLIP, WIDTH, HEADS, KV_HEADS, MLP = 128, 144, 48, 6, 2, 80
STATISTICS: dict[str, Any] = {
    "action": {
        "mean": [0.0] * 7,
        "std": [1.0] * 7,
        "min": [-2.0, -2.0, -2.0, -1.0, -1.0, -1.0, 0.0],
        "max": [2.0, 2.5, 2.0, 1.0, 1.0, 1.0, 1.0],
        "q01": [-1.0, -1.5, -0.5, -0.2, -0.1, -0.3, 0.0],
        "q99": [1.0, 1.25, 0.75, 0.2, 0.3, -0.3, 1.0],
        "mask": [True] * 6 + [False],
    },
    "proprio": {
        **{name: [value] * 8 for name, value in (("mean", 0.0), ("std", 1.0), ("min", -3.0), ("max", 3.0))},
        "q01": [-1.0, 0.0, 0.5, -1.0, -2.0, 0.0, 0.0, 0.1],
        "q99": [1.0, 1.0, 1.5, 2.0, 2.0, 0.5, 0.0, 0.2],
    },
    "num_transitions": 10,
    "num_trajectories": 2,
}
EMPTY = "▁"
RARE = "黄"
"""One of the vocabulary's last characters, whose token is an action's."""


def llama_tokenizer() -> Tokenizer:
    """A tokenizer in Llama's layout: special tokens, bytes, words, single characters, and a token for padding."""
    joined = ["▁a", "▁t", "▁th", "▁the", "▁In", "▁Out", "in", "on", "▁W", "▁w", "▁wh"]
    letters = [EMPTY, *(chr(i) for i in range(33, 127))]
    merges = [("▁", "a"), ("▁", "t"), ("▁t", "h"), ("▁th", "e"), ("▁", "I"), ("▁I", "n"), ("▁", "O"), ("▁O", "u")]
    merges += [("▁Ou", "t"), ("i", "n"), ("o", "n"), ("▁", "W"), ("▁", "w"), ("▁w", "h")]
    joined += ["▁I", "▁O", "▁Ou"]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *joined, *letters]
    rare = (chr(ord("一") + i) for i in range(34_000) if chr(ord("一") + i) != RARE)
    pieces += [next(rare) for _ in range(WORDS - len(pieces) - 1)] + [RARE]
    words = Tokenizer(
        models.BPE({p: i for i, p in enumerate(pieces)}, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    words.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    words.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = [AddedToken(token, special=True, normalized=False) for token in ("<unk>", "<s>", "</s>")]
    words.add_special_tokens([*special, AddedToken("<PAD>", special=True, normalized=False)])
    words.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return words


def shapes() -> dict[str, tuple[int, ...]]:
    """The published names, with the sizes of these checkpoints."""
    found: dict[str, tuple[int, ...]] = {}
    tokens = (SIDE // PATCH) ** 2

    def linear(name: str, outputs: int, inputs: int) -> None:
        found[f"{name}.weight"], found[f"{name}.bias"] = (outputs, inputs), (outputs,)

    for prefix, width, mlp, layers in (("featurizer", DINO, 3 * DINO, 3), ("fused_featurizer", SIGLIP, 100, 2)):
        base = f"vision_backbone.{prefix}."
        found[base + "pos_embed"] = (1, tokens, width)
        found[base + "patch_embed.proj.weight"] = (width, 3, PATCH, PATCH)
        found[base + "patch_embed.proj.bias"] = (width,)
        for block in (f"{base}blocks.{i}." for i in range(layers)):
            linear(block + "attn.qkv", 3 * width, width)
            linear(block + "attn.proj", width, width)
            linear(block + "mlp.fc1", mlp, width)
            linear(block + "mlp.fc2", width, mlp)
            for norm in ("norm1", "norm2"):
                found[block + norm + ".weight"] = found[block + norm + ".bias"] = (width,)
            if prefix == "featurizer":
                found[block + "ls1.scale_factor"] = found[block + "ls2.scale_factor"] = (width,)
        found[base + "norm.weight"] = found[base + "norm.bias"] = (width,)
    found["vision_backbone.featurizer.cls_token"] = (1, 1, DINO)
    found["vision_backbone.featurizer.reg_token"] = (1, 4, DINO)
    found["vision_backbone.fused_featurizer.attn_pool.latent"] = (1, 1, SIGLIP)
    linear("vision_backbone.fused_featurizer.attn_pool.q", SIGLIP, SIGLIP)
    linear("projector.fc1", 4 * (DINO + SIGLIP), DINO + SIGLIP)
    linear("projector.fc2", WIDTH, 4 * (DINO + SIGLIP))
    linear("projector.fc3", WIDTH, WIDTH)
    head = WIDTH // HEADS
    language = "language_model.model."
    found[language + "embed_tokens.weight"] = found["language_model.lm_head.weight"] = (WORDS + PADDING, WIDTH)
    for layer in (f"{language}layers.{i}." for i in range(2)):
        found[layer + "self_attn.q_proj.weight"] = found[layer + "self_attn.o_proj.weight"] = (WIDTH, WIDTH)
        found[layer + "self_attn.k_proj.weight"] = found[layer + "self_attn.v_proj.weight"] = (KV_HEADS * head, WIDTH)
        found[layer + "mlp.gate_proj.weight"] = found[layer + "mlp.up_proj.weight"] = (MLP, WIDTH)
        found[layer + "mlp.down_proj.weight"] = (WIDTH, MLP)
        for norm in ("input_layernorm", "post_attention_layernorm"):
            found[layer + norm + ".weight"] = (WIDTH,)
    found[language + "norm.weight"] = (WIDTH,)
    return found


def random_weights(names: dict[str, tuple[int, ...]], seed: int) -> dict[str, Tensor]:
    """Random weights that keep activations near 1."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for name, shape in names.items():
        weight = torch.randn(shape, generator=generator) * (0.3 if len(shape) < 2 else shape[-1] ** -0.5)
        is_scale = len(shape) == 1 and name.endswith(".weight") or name.endswith("scale_factor")
        made[name] = weight + 1 if is_scale else weight
    return made


def write(folder: Path, statistics: dict[str, Any] | None = None) -> dict[str, Tensor]:
    """Writes OpenVLA's files, the weights in two shards, and returns the weights."""
    weights = random_weights(shapes(), 0)
    weights["language_model.model.embed_tokens.weight"] *= WIDTH**0.5
    # As in a trained policy: after the prompt a token of the last 256 words is the most probable.
    weights["language_model.lm_head.weight"][WORDS - BINS : WORDS] *= 5
    names, halves = sorted(weights), {}
    for i, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :])):
        file = f"model-{i + 1:05d}-of-00002.safetensors"
        save_file({name: weights[name].contiguous() for name in part}, folder / file, {"format": "pt"})
        halves |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": halves}))
    write_settings(folder)
    if statistics is not None:
        (folder / "dataset_statistics.json").write_text(json.dumps(statistics))
    return weights


def write_settings(folder: Path) -> None:
    """Writes the files of OpenVLA other than the weights."""
    config = {
        "model_type": "openvla",
        "architectures": ["OpenVLAForActionPrediction"],
        "auto_map": {"AutoConfig": "configuration_prismatic.OpenVLAConfig"},
        "arch_specifier": "no-align+fused-gelu-mlp",
        "image_resize_strategy": "resize-naive",
        "image_sizes": [SIDE, SIDE],
        "llm_backbone_id": "llama2-7b-pure",
        "n_action_bins": BINS,
        "norm_stats": {"one": STATISTICS, "two": STATISTICS},
        "pad_to_multiple_of": PADDING,
        "pad_token_id": WORDS,
        "text_config": {
            "model_type": "llama",
            "torch_dtype": "bfloat16",
            "vocab_size": WORDS + PADDING,
            "pad_token_id": WORDS,
            "hidden_size": WIDTH,
            "intermediate_size": MLP,
            "num_hidden_layers": 2,
            "num_attention_heads": HEADS,
            "num_key_value_heads": KV_HEADS,
        },
        "use_fused_vision_backbone": True,
        "vision_backbone_id": "dinosiglip-vit-so-224px",
    }
    (folder / "config.json").write_text(json.dumps(config))
    llama_tokenizer().save(str(folder / "tokenizer.json"))


def write_oft(folder: Path, action_dim: int = 7, state_dim: int = 8) -> dict[str, dict[str, Tensor]]:
    """Writes OpenVLA-OFT's modules, with the prefix of distributed training, and returns their weights."""
    head = {f"model.{name}.{part}": (WIDTH,) for name in ("layer_norm2",) for part in ("weight", "bias")}
    head |= {f"model.layer_norm1.{part}": (WIDTH * action_dim,) for part in ("weight", "bias")}
    head |= {"model.fc1.weight": (WIDTH, WIDTH * action_dim), "model.fc1.bias": (WIDTH,)}
    head |= {"model.fc2.weight": (action_dim, WIDTH), "model.fc2.bias": (action_dim,)}
    for block in (f"model.mlp_resnet_blocks.{i}.ffn." for i in range(2)):
        head |= {block + "0.weight": (WIDTH,), block + "0.bias": (WIDTH,)}
        head |= {block + "1.weight": (WIDTH, WIDTH), block + "1.bias": (WIDTH,)}
    projector = {"fc1.weight": (WIDTH, state_dim), "fc1.bias": (WIDTH,)}
    projector |= {"fc2.weight": (WIDTH, WIDTH), "fc2.bias": (WIDTH,)}
    made = {"action_head": random_weights(head, 1), "proprio_projector": random_weights(projector, 2)}
    for name, weights in made.items():
        stored = {f"module.{key}": weight for key, weight in weights.items()}
        torch.save(stored, folder / f"{name}--150000_checkpoint.pt")
    return made


def encoder(weights: dict[str, Tensor], prefix: str, pixels: Float[Tensor, "3 h w"], head: int) -> Float[Tensor, "p c"]:
    """Timm's vision transformer up to its second-to-last block, without the final norm and the prefix tokens."""
    at = {n.removeprefix(prefix): w for n, w in weights.items() if n.startswith(prefix)}
    x = F.conv2d(pixels[None], at["patch_embed.proj.weight"], at["patch_embed.proj.bias"], PATCH)
    x = x.flatten(2).transpose(1, 2) + at["pos_embed"]
    extra = [at[name] for name in ("cls_token", "reg_token") if name in at]
    x = torch.cat([*extra, x], 1)
    skipped = sum(token.shape[1] for token in extra)
    layers = 1 + max(int(name.split(".")[1]) for name in at if name.startswith("blocks."))
    for i in range(layers - 1):
        block = {n.removeprefix(f"blocks.{i}."): w for n, w in at.items() if n.startswith(f"blocks.{i}.")}
        width = x.shape[-1]
        h = F.layer_norm(x, (width,), block["norm1.weight"], block["norm1.bias"], 1e-6)
        qkv = F.linear(h, block["attn.qkv.weight"], block["attn.qkv.bias"])
        q, k, v = qkv.reshape(1, -1, 3, width // head, head).permute(2, 0, 3, 1, 4)
        h = ((q @ k.transpose(-1, -2)) * head**-0.5).softmax(-1) @ v
        h = F.linear(h.transpose(1, 2).flatten(2), block["attn.proj.weight"], block["attn.proj.bias"])
        x = x + h * block.get("ls1.scale_factor", torch.ones(width))
        h = F.layer_norm(x, (width,), block["norm2.weight"], block["norm2.bias"], 1e-6)
        h = F.gelu(F.linear(h, block["mlp.fc1.weight"], block["mlp.fc1.bias"]))
        h = F.linear(h, block["mlp.fc2.weight"], block["mlp.fc2.bias"])
        x = x + h * block.get("ls2.scale_factor", torch.ones(width))
    return x[0, skipped:]


def image_tokens(weights: dict[str, Tensor], image: np.ndarray[Any, Any], resample: Any) -> Float[Tensor, "p d"]:
    """The tokens of a camera image."""
    small = np.array(Image.fromarray(image).resize((SIDE, SIDE), resample))
    pixels = torch.from_numpy(small).permute(2, 0, 1).float() / 255
    mean, std = torch.tensor([0.484375, 0.455078125, 0.40625]), torch.tensor([0.228515625, 0.2236328125, 0.224609375])
    dino = encoder(weights, "vision_backbone.featurizer.", (pixels - mean[:, None, None]) / std[:, None, None], 64)
    siglip = encoder(weights, "vision_backbone.fused_featurizer.", (pixels - 0.5) / 0.5, 72)
    x = torch.cat([dino, siglip], -1)
    for name in ("fc1", "fc2", "fc3"):
        x = F.linear(x, weights[f"projector.{name}.weight"], weights[f"projector.{name}.bias"])
        x = x if name == "fc3" else F.gelu(x)
    return x


def llama(weights: dict[str, Tensor], x: Float[Tensor, "l d"], causal: bool) -> Float[Tensor, "l d"]:
    """The last hidden states of Llama."""

    def norm(x: Tensor, name: str) -> Tensor:
        return x * (x.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt() * at[f"{name}.weight"]

    at = {n.removeprefix("language_model.model."): w for n, w in weights.items()}
    head, length = WIDTH // HEADS, len(x)
    angles = torch.arange(length)[:, None] * 10000.0 ** (-torch.arange(0, head, 2) / head)
    cos, sin = (torch.cat([f(angles)] * 2, -1) for f in (torch.cos, torch.sin))

    def rotate(x: Tensor) -> Tensor:
        first, second = x.chunk(2, -1)
        return x * cos + torch.cat([-second, first], -1) * sin

    hidden = torch.full((length, length), -torch.inf).triu(1) if causal else torch.zeros(length, length)
    for i in range(2):
        layer = f"layers.{i}."
        h = norm(x, layer + "input_layernorm")
        q, k, v = (
            (h @ at[f"{layer}self_attn.{n}_proj.weight"].T).unflatten(-1, (-1, head)).transpose(0, 1) for n in "qkv"
        )
        k, v = (t.repeat_interleave(HEADS // KV_HEADS, 0) for t in (k, v))
        h = ((rotate(q) @ rotate(k).transpose(-1, -2)) * head**-0.5 + hidden).softmax(-1) @ v
        x = x + h.transpose(0, 1).flatten(1) @ at[f"{layer}self_attn.o_proj.weight"].T
        h = norm(x, layer + "post_attention_layernorm")
        gate, up = (h @ at[f"{layer}mlp.{n}_proj.weight"].T for n in ("gate", "up"))
        x = x + (F.silu(gate) * up) @ at[f"{layer}mlp.down_proj.weight"].T
    return norm(x, "norm")


def prompt_ids(instruction: str) -> list[int]:
    """The words of the prompt after `<s>`, with the token of the empty text at their end."""
    words = llama_tokenizer()
    text = f"In: What action should the robot take to {instruction.lower()}?\nOut:"
    empty = words.token_to_id(EMPTY)
    return [*words.encode(text).ids[1:], empty]


def opening(weights: dict[str, Tensor], tokens: list[Tensor], ids: list[int]) -> Float[Tensor, "l d"]:
    """Embeddings: `<s>`, the images and what follows them, and words."""
    table = weights["language_model.model.embed_tokens.weight"]
    return torch.cat([table[1:2], *tokens, table[torch.tensor(ids)]])


def greedy(weights: dict[str, Tensor], image: np.ndarray[Any, Any], instruction: str) -> list[int]:
    """The ids of the seven tokens that OpenVLA generates."""
    ids = prompt_ids(instruction)
    tokens, count = [image_tokens(weights, image, Image.Resampling.BICUBIC)], len(ids)
    for _ in range(7):
        hidden = llama(weights, opening(weights, tokens, ids), causal=True)
        ids.append(int((hidden[-1] @ weights["language_model.lm_head.weight"].T).argmax()))
    return ids[count:]


def actions_of(ids: Int[np.ndarray, "a"]) -> Float[np.ndarray, "a"]:
    """The action in the robot's units."""
    edges = np.linspace(-1, 1, BINS)
    centres = (edges[:-1] + edges[1:]) / 2
    values = centres[np.clip(WORDS - ids - 1, 0, len(centres) - 1)]
    return unnormalised(values, 0.0)


def unnormalised(values: Float[np.ndarray, "*t a"], slack: float) -> Float[np.ndarray, "*t a"]:
    """OpenVLA's inverse normalisation of an action."""
    action = STATISTICS["action"]
    low, high = np.array(action["q01"]), np.array(action["q99"])
    return np.where(action["mask"], 0.5 * (values + 1) * (high - low + slack) + low, values)


def oft_chunk(
    weights: dict[str, Tensor],
    modules: dict[str, dict[str, Tensor]],
    images: list[np.ndarray[Any, Any]],
    state: Float[np.ndarray, "s"],
    instruction: str,
) -> Float[Tensor, "h a"]:
    """OpenVLA-OFT's normalised chunk of 8 steps."""
    stats = {name: np.array(values) for name, values in STATISTICS["proprio"].items()}
    unit = np.clip(2 * (state - stats["q01"]) / (stats["q99"] - stats["q01"] + 1e-8) - 1, -1, 1)
    at = modules["proprio_projector"]
    proprio = F.gelu(torch.from_numpy(unit).float() @ at["fc1.weight"].T + at["fc1.bias"])
    tokens = [image_tokens(weights, image, Image.Resampling.LANCZOS) for image in images]
    tokens.append((proprio @ at["fc2.weight"].T + at["fc2.bias"])[None])
    start = opening(weights, tokens, prompt_ids(instruction))
    end = weights["language_model.model.embed_tokens.weight"][2:3]
    hidden = llama(weights, torch.cat([start, torch.zeros(56, WIDTH), end]), causal=False)
    # The first is read from the last token of the prompt.
    x = hidden[len(start) - 1 : len(start) - 1 + 56].reshape(8, -1)
    at = {name.removeprefix("model."): weight for name, weight in modules["action_head"].items()}

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], at[f"{name}.weight"], at[f"{name}.bias"])

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, at[f"{name}.weight"], at[f"{name}.bias"])

    x = F.relu(linear(norm(x, "layer_norm1"), "fc1"))
    for block in (f"mlp_resnet_blocks.{i}.ffn." for i in range(2)):
        x = x + F.relu(linear(norm(x, block + "0"), block + "1"))
    return linear(norm(x, "layer_norm2"), "fc2")
