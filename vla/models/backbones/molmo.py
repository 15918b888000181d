"""Molmo and MolmoE: CLIP, attention over windows of 2 x 2 patches, and Qwen2, OLMo2 or OLMoE (Deitke et al. 2024)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention, silu
from transformers import CLIPVisionConfig, CLIPVisionModel, PreTrainedTokenizerFast

from vla.errors import InputError
from vla.models.backbone_inputs import ImageInput
from vla.models.backbones.cache import Vision
from vla.models.backbones.hf_backbone import grow, insert_masked_logits
from vla.models.backbones.own_family import OwnFamily, Rule, converted, filled, released_config, released_weights
from vla.models.preprocessing.molmo_crops import MARGIN, POOL, patch_coverage, token_grid

MARKS = ("im_patch", "im_start", "im_col", "im_end")
LAYERS = (-2, -9)
"""Layers of CLIP whose outputs are concatenated as the features of a patch."""
HEAD = 64
"""Width of an attention head of CLIP and of the pooling."""


class VisionTower(nn.Module):
    """CLIP's vision model without its last norm: the concatenated outputs of `layers`, without the class token."""

    def __init__(self, layers: Sequence[int], **clip: Any) -> None:
        super().__init__()
        self.layers, self.native = tuple(layers), clip["image_size"]
        self.clip = CLIPVisionModel(CLIPVisionConfig(**clip))
        self.clip.vision_model.register_module("post_layernorm", nn.Identity())

    def forward(self, pixels: Float[Tensor, "n 3 h h"]) -> Float[Tensor, "n p c"]:
        """The features of each patch, (n, p, c)."""
        resize = pixels.shape[-1] != self.native
        states = self.clip(pixels, output_hidden_states=True, interpolate_pos_encoding=resize).hidden_states
        return torch.cat([states[layer][:, 1:] for layer in self.layers], -1)


class Connector(nn.Module):
    """Attention pooling of windows of 2 x 2 patches, with their mean as query, followed by a SwiGLU MLP."""

    def __init__(self, features: int, width: int, mlp: int, out: int) -> None:
        super().__init__()
        self.pad = nn.Parameter(torch.zeros(2, features))
        self.query, self.key, self.value = (nn.Linear(features, width) for _ in range(3))
        self.output = nn.Linear(width, width)
        self.gate, self.up = (nn.Linear(width, mlp, bias=False) for _ in range(2))
        self.down = nn.Linear(mlp, out, bias=False)

    def forward(
        self, features: Float[Tensor, "n p c"], coverage: Float[Tensor, "n p"] | None = None
    ) -> Float[Tensor, "n t d"]:
        """The tokens of each crop.

        Args:
            coverage: fraction of each patch that is image, 1 by default; -1 for an unknown fraction. Padding
                embeddings are added to patches that are not, or partly, image.
        """
        if coverage is not None:
            empty, partial = coverage == 0, (coverage < 1) & (coverage != 0)
            features = features + empty[..., None] * self.pad[0] + partial[..., None] * self.pad[1]
        n, side = len(features), round(features.shape[1] ** 0.5) // POOL
        windows = features.reshape(n, side, POOL, side, POOL, -1).transpose(2, 3).reshape(n * side**2, POOL**2, -1)
        q, k, v = (
            map_(x).unflatten(2, (-1, HEAD)).transpose(1, 2)
            for map_, x in ((self.query, windows.mean(1, keepdim=True)), (self.key, windows), (self.value, windows))
        )
        pooled = self.output(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(1))
        return self.down(silu(self.gate(pooled)) * self.up(pooled)).unflatten(0, (n, side**2))


class Molmo(OwnFamily):
    """Molmo or MolmoE: an image is encoded as its resized version and its crops (`molmo_crops.Crops`).

    Args:
        vision: CLIP's configuration and the `layers` that are read.
        mlp: width of the connector's MLP.
        extra_rows: number of input-only tokens, which have an embedding but no logits.
        head_rows: number of outputs of the released head; the input-only tokens follow them.
    """

    name = "molmo"
    connector: Connector

    def __init__(
        self,
        model: Mapping[str, Any],
        vision: Mapping[str, Any],
        mlp: int,
        extra_rows: int,
        head_rows: int,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, vision, **kwargs)
        self.mlp, self.extra_rows, self.head_rows = mlp, extra_rows, head_rows
        grow(self.model.get_input_embeddings(), extra_rows, self.model.config.initializer_range)
        self.vision = VisionTower(**vision)
        width = vision["hidden_size"]
        self.connector = Connector(len(vision["layers"]) * width, width, mlp, self.hidden_size)

    @property
    def config(self) -> dict[str, Any]:
        """See `Backbone.config`."""
        return super().config | {"mlp": self.mlp, "extra_rows": self.extra_rows, "head_rows": self.head_rows}

    def image_grid(self) -> tuple[int, int]:
        """See `HFBackbone.image_grid`."""
        step = POOL * self.vision_config["patch_size"]
        if self.image_size % step:
            raise InputError(f"images of {self.image_size} pixels do not divide into windows of {step}")
        return self.image_size // step, self.image_size // step

    def add_token_embeddings(self, count: int) -> None:
        """See `Backbone.add_token_embeddings`."""
        for module in (self.model.get_input_embeddings(), self.model.lm_head):
            grow(module, count, self.model.config.initializer_range)
        self.model.config.vocab_size += count

    def logits(self, hidden: Float[Tensor, "*b d"]) -> Float[Tensor, "*b v"]:
        """Logits in which the input-only tokens are masked."""
        return insert_masked_logits(self.model.lm_head(hidden), self.head_rows, self.extra_rows)

    def insert_features(
        self, embeds: Float[Tensor, "b l d"], image_tokens: Bool[Tensor, "b l 1"], features: Float[Tensor, "t d"]
    ) -> Float[Tensor, "b l d"]:
        """The embeddings, to which the image features are added at `image_tokens`."""
        return embeds + torch.zeros_like(embeds).masked_scatter(image_tokens, features)

    def encode_images(self, images: ImageInput) -> Vision:
        """See `Backbone.encode_images`. An image without `content` or crops is assumed to fill its frame."""
        features = self.vision(images.frames)
        if images.content is None or images.tiling is None:
            tokens = self.connector(features).flatten(0, 1)
            return Vision(tokens, len(tokens))
        tiling, patch = images.tiling[images.mask].tolist(), self.vision_config["patch_size"]
        rows = torch.nonzero(images.mask)[:, 0].tolist()
        # The row of each frame and the index of its image in the row.
        keys = [(row, number) for row, (number, _, _) in zip(rows, tiling, strict=True)]
        firsts = [i for i in range(len(keys)) if not i or keys[i] != keys[i - 1]]
        covered = patch_coverage(images.content[images.mask], self.image_size, patch).to(features)
        coverage, indices = torch.ones_like(covered), []
        side = self.image_size // patch // POOL
        for first, end in zip(firsts, [*firsts[1:], len(keys)], strict=True):
            selected = torch.arange(side**2)
            if end - first > 1:
                # As in the released model, the padding of each crop is applied to the frame before it, and the last
                # crop counts as partly image.
                coverage[first : end - 1], coverage[end - 1] = covered[first + 1 : end], -1
                grid = token_grid(tiling[first][1], tiling[first][2], side, MARGIN // POOL)
                selected = torch.cat([selected, grid.flatten()])
            indices.append(selected + first * side**2)
        tokens = self.connector(features, coverage).flatten(0, 1)[torch.cat(indices).to(features.device)]
        return Vision(tokens, len(tokens))


def load(
    folder: str | Path, image_size: int | None = None, dtype: torch.dtype = torch.float32
) -> tuple[Molmo, PreTrainedTokenizerFast]:
    """Loads Molmo or MolmoE and its tokenizer from a folder with the released files.

    Raises:
        InputError: when the folder does not contain them.
    """
    config = released_config(folder, model_type="molmo")
    released = {name.removeprefix("model."): weight for name, weight in released_weights(folder).items()}
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    marks = {name: tokenizer.convert_tokens_to_ids(f"<{name}>") for name in MARKS}
    if absent := [name for name, token in marks.items() if token in (None, tokenizer.unk_token_id)]:
        raise InputError(f"the tokenizer of {folder} has no {', '.join(absent)}: it is not Molmo's")
    arguments = arguments_of(config, released)

    weights = our_weights(released, arguments["model"])
    size = image_size or arguments["vision"]["image_size"]
    arguments |= {"image_token_id": marks["im_patch"], "image_size": size}
    return filled(Molmo, arguments, weights, dtype), tokenizer


def arguments_of(config: Mapping[str, Any], weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """The arguments of `Molmo`: sizes from the released weights, the rest from the configuration.

    Molmo's configuration has transformers' names, MolmoE's those of OLMo. MolmoE's blocks have submodules (`attn.`,
    `mlp.`).
    """

    def sizes(ending: str) -> torch.Size:
        try:
            return next(weight.shape for name, weight in weights.items() if name.endswith(ending))
        except StopIteration:
            raise InputError(f"the weights have no {ending}: they are not Molmo's") from None

    def count(block: str) -> int:
        return 1 + max((int(m[1]) for name in weights if (m := re.match(block + r"\.(\d+)\.", name))), default=-1)

    vit = "vision_backbone.image_vit."
    rows, hidden = sizes("wte.embedding")
    positions, width = sizes(vit + "positional_embedding")
    patch = round((sizes(vit + "patch_embedding.weight")[1] / 3) ** 0.5)
    heads = config.get("num_attention_heads") or config["n_heads"]
    kv = config.get("num_key_value_heads") or config.get("n_kv_heads") or heads
    experts = "transformer.blocks.0.mlp.gate.weight" in weights
    model: dict[str, Any] = {
        "model_type": "olmoe" if experts else "olmo2" if config.get("norm_after") else "qwen2",
        "vocab_size": rows,
        "hidden_size": hidden,
        "intermediate_size": sizes("experts.0.gate_proj.weight")[0] if experts else sizes("ff_proj.weight")[0] // 2,
        "num_hidden_layers": count(r"transformer\.blocks"),
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "rms_norm_eps": config["layer_norm_eps"],
        "rope_parameters": {"rope_type": "default", "rope_theta": config["rope_theta"]},
        "max_position_embeddings": config["max_position_embeddings"],
        # Without this, OLMo's token 1 would be padding, whose embedding is not trained.
        **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id")),
    }
    if experts:
        moe = {"num_experts": sizes("blocks.0.mlp.gate.weight")[0], "num_experts_per_tok": config["moe_top_k"]}
        model |= moe | {"clip_qkv": config.get("clip_qkv"), "norm_topk_prob": False}
    vision = {
        "layers": list(config.get("vit_layers") or LAYERS),
        "hidden_size": width,
        "intermediate_size": sizes("resblocks.0.feed_forward.w1.weight")[0],
        "num_hidden_layers": count(re.escape(vit) + r"transformer\.resblocks"),
        "num_attention_heads": width // HEAD,
        "image_size": round((positions - 1) ** 0.5) * patch,
        "patch_size": patch,
        "hidden_act": "quick_gelu",
        "layer_norm_eps": 1e-5,
    }
    extra = {"extra_rows": sizes("wte.new_embedding")[0], "head_rows": rows}
    return {"model": model, "vision": vision, "mlp": sizes("image_projector.w1.weight")[0], **extra}


def our_weights(weights: Mapping[str, Tensor], model: Mapping[str, Any]) -> dict[str, Tensor]:
    """Renames released weights, whose names have no "model." prefix; `model` is the decoder's configuration."""
    ours = converted(weights, rules(model))
    embedding = [ours.pop(f"{kind}embedding") for kind in ("", "new_")]
    ours["model.model.embed_tokens.weight"] = torch.cat(embedding)
    for layer in range(model["num_hidden_layers"] if model["model_type"] == "olmoe" else 0):
        base = f"model.model.layers.{layer}.mlp.experts."
        gate, up, down = (
            [ours.pop(f"{base}{i}.{name}") for i in range(model["num_experts"])] for name in ("gate", "up", "down")
        )
        ours[base + "gate_up_proj"] = torch.cat([torch.stack(gate), torch.stack(up)], 1)
        ours[base + "down_proj"] = torch.stack(down)
    return ours


def rules(model: Mapping[str, Any]) -> list[Rule]:
    """Rules from released names to ours, except the two embeddings and the experts, which `our_weights` joins."""
    size = model["hidden_size"] // model["num_attention_heads"]
    widths = [model["hidden_size"], *[size * model["num_key_value_heads"]] * 2]
    # OLMo2 has norms after attention and MLP, the others before them.
    order = ["input_layernorm", "post_attention_layernorm", "post_feedforward_layernorm"]
    norms = order[1:] if model["model_type"] == "olmo2" else order[:2]
    block, ours = r"transformer\.blocks\.(\d+)\.(?:attn\.|mlp\.)?", r"model.model.layers.\1."
    vit, clip = r"vision_backbone\.image_vit\.", "vision.clip.vision_model."
    layer, deep = vit + r"transformer\.resblocks\.(\d+)\.", clip + r"encoder.layers.\1."
    pool, mlp = r"vision_backbone\.image_pooling_2d\.", r"vision_backbone\.image_projector\."
    attention = tuple(ours + rf"self_attn.{kind}_proj.\2" for kind in "qkv")
    return [
        Rule(r"transformer\.wte\.(new_)?embedding", (r"\1embedding",)),
        Rule(r"transformer\.ln_f\.weight", ("model.model.norm.weight",)),
        Rule(r"transformer\.ff_out\.weight", ("model.lm_head.weight",)),
        Rule(block + r"att_proj\.(weight|bias)", attention, lambda weight: weight.split(widths)),
        Rule(block + r"attn_out\.weight", (ours + "self_attn.o_proj.weight",)),
        Rule(block + r"(q|k)_norm\.weight", (ours + r"self_attn.\2_norm.weight",)),
        Rule(block + r"attn_norm\.weight", (ours + f"{norms[0]}.weight",)),
        Rule(block + r"ff_norm\.weight", (ours + f"{norms[1]}.weight",)),
        Rule(block + r"ff_proj\.weight", (ours + "mlp.up_proj.weight", ours + "mlp.gate_proj.weight"), halves),
        Rule(block + r"ff_out\.weight", (ours + "mlp.down_proj.weight",)),
        Rule(block + r"gate\.weight", (ours + "mlp.gate.weight",)),
        Rule(block + r"experts\.(\d+)\.(gate|up|down)_proj\.weight", (ours + r"mlp.experts.\2.\3",)),
        Rule(vit + r"class_embedding", (clip + "embeddings.class_embedding",)),
        Rule(vit + r"positional_embedding", (clip + "embeddings.position_embedding.weight",)),
        Rule(vit + r"patch_embedding\.weight", (clip + "embeddings.patch_embedding.weight",), as_convolution),
        Rule(vit + r"pre_ln\.(weight|bias)", (clip + r"pre_layrnorm.\1",)),
        Rule(layer + r"attention\.w(q|k|v)\.(weight|bias)", (deep + r"self_attn.\2_proj.\3",)),
        Rule(layer + r"attention\.wo\.(weight|bias)", (deep + r"self_attn.out_proj.\2",)),
        Rule(layer + r"attention_norm\.(weight|bias)", (deep + r"layer_norm1.\2",)),
        Rule(layer + r"ffn_norm\.(weight|bias)", (deep + r"layer_norm2.\2",)),
        Rule(layer + r"feed_forward\.w(1|2)\.(weight|bias)", (deep + r"mlp.fc\2.\3",)),
        Rule(r"vision_backbone\.pad_embed", ("connector.pad",)),
        Rule(pool + r"wq\.(weight|bias)", (r"connector.query.\1",)),
        Rule(pool + r"wk\.(weight|bias)", (r"connector.key.\1",)),
        Rule(pool + r"wv\.(weight|bias)", (r"connector.value.\1",)),
        Rule(pool + r"wo\.(weight|bias)", (r"connector.output.\1",)),
        Rule(mlp + r"w1\.weight", ("connector.gate.weight",)),
        Rule(mlp + r"w3\.weight", ("connector.up.weight",)),
        Rule(mlp + r"w2\.weight", ("connector.down.weight",)),
    ]


def halves(weight: Tensor) -> Sequence[Tensor]:
    """The two halves of a weight's rows."""
    return weight.chunk(2)


def as_convolution(weight: Tensor) -> Sequence[Tensor]:
    """A linear patch embedding as a convolution; its inputs are ordered by row, column, then colour."""
    side = round((weight.shape[1] / 3) ** 0.5)
    return (weight.unflatten(1, (side, side, 3)).permute(0, 3, 1, 2).contiguous(),)
