"""Prismatic with DINOv2 and SigLIP (Karamcheti et al. 2024, arXiv 2402.07865), the backbone of OpenVLA.

The features of a patch are the outputs of the second-to-last block of both encoders, without the final norm. A released
checkpoint also has the last blocks, the final norms and SigLIP's pooling, which are not loaded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from transformers import (
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from vla.errors import InputError
from vla.models.backbone_inputs import DecoderInput, ImageInput
from vla.models.backbones.cache import Vision
from vla.models.backbones.own_family import OwnFamily, Rule
from vla.models.backbones.token_family import PromptLayout
from vla.models.masks import run_decoder

PIXELS = (
    ((0.484375, 0.455078125, 0.40625), (0.228515625, 0.2236328125, 0.224609375)),
    ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
)
"""Mean and standard deviation of DINOv2's pixels (ImageNet's, rounded to bfloat16) and of SigLIP's."""
DINO_HEAD_DIM, SIGLIP_HEAD_DIM = 64, 72
"""Components of an attention head, which no weight shows."""


class FusedEncoders(nn.Module):
    """DINOv2 with registers and SigLIP on the same pixels in [0, 1].

    Args:
        dino, siglip: configurations of transformers, without the blocks that are not used.
        pixels: mean and standard deviation for each encoder (`PIXELS`).
    """

    mean: Float[Tensor, "2 3 1 1"]
    std: Float[Tensor, "2 3 1 1"]

    def __init__(self, dino: Mapping[str, Any], siglip: Mapping[str, Any], pixels: Sequence[Any]) -> None:
        super().__init__()
        # Buffers, since a CUDA graph cannot copy numbers from the host.
        mean, std = (torch.tensor(values)[:, :, None, None] for values in zip(*pixels, strict=True))
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)
        self.dino: Any = Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**dino))
        self.dino.register_module("layernorm", nn.Identity())
        self.dino.embeddings.register_parameter("mask_token", None)
        self.siglip: Any = SiglipVisionModel(SiglipVisionConfig(**{**siglip, "vision_use_head": False}))
        self.siglip.vision_model.register_module("post_layernorm", nn.Identity())

    def forward(self, pixels: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n p c"]:
        """The features of each patch: DINOv2's, then SigLIP's."""
        dino, siglip = ((pixels - mean) / std for mean, std in zip(self.mean, self.std, strict=True))
        patches = self.siglip(siglip).last_hidden_state
        return torch.cat([self.dino(dino).last_hidden_state[:, -patches.shape[1] :], patches], -1)


class Projector(nn.Module):
    """Three linear layers with GELU between them; the first has four times as many outputs as inputs."""

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.fc1, self.fc2, self.fc3 = nn.Linear(width, 4 * width), nn.Linear(4 * width, out), nn.Linear(out, out)

    def forward(self, features: Float[Tensor, "n p c"]) -> Float[Tensor, "n p d"]:
        """The tokens of each image."""
        return self.fc3(F.gelu(self.fc2(F.gelu(self.fc1(features)))))


class Prismatic(OwnFamily):
    """DINOv2 and SigLIP, an MLP and Llama; pixels in a batch are in [0, 1].

    Args:
        model: Llama's configuration.
        vision: the arguments of `FusedEncoders`.
        bidirectional: the tokens of a prompt attend to each other in both directions (OpenVLA-OFT).
        area: the share of the image's area that is kept, around its centre, after training on random crops.
        kwargs: the other arguments of `HFBackbone`.
    """

    name = "prismatic"
    vision: FusedEncoders
    connector: Projector

    def __init__(
        self,
        model: Mapping[str, Any],
        vision: Mapping[str, Any],
        bidirectional: bool = False,
        area: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(model, vision, **kwargs)
        if not 0 < area <= 1:
            raise InputError(f"a crop keeps a share of the image's area in (0, 1], not {area}")
        self.area = area
        self.prompt = PromptLayout(prefix_lm=bidirectional, first_position=0)
        self.vision = FusedEncoders(**vision)
        widths = [vision[name]["hidden_size"] for name in ("dino", "siglip")]
        self.connector = Projector(sum(widths), self.hidden_size)

    @property
    def config(self) -> dict[str, Any]:
        """See `Backbone.config`."""
        return super().config | {"bidirectional": self.prompt.prefix_lm, "area": self.area}

    def image_grid(self) -> tuple[int, int]:
        """See `HFBackbone.image_grid`."""
        patch = self.vision_config["dino"]["patch_size"]
        if self.image_size % patch:
            raise InputError(f"images of {self.image_size} pixels do not divide into patches of {patch}")
        return self.image_size // patch, self.image_size // patch

    def image_features(self, pixels: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "t d"]:
        """The tokens of all images."""
        tokens: Tensor = self.connector(self.vision(centre(pixels, self.area)))
        return tokens.flatten(0, 1)

    def encode_images(self, images: ImageInput) -> Vision:
        """See `Backbone.encode_images`."""
        features = self.image_features(images.frames)
        return Vision(features, len(features))

    def forward(self, inputs: DecoderInput) -> tuple[Float[Tensor, "b l d"], Any]:
        """See `Backbone.forward`. Segment 0 is `bidirectional`, so predicted tokens need another."""
        return run_decoder(self.decoder, inputs, bidirectional=self.prompt.prefix_lm), inputs.cache


def centre(pixels: Float[Tensor, "n 3 h w"], area: float) -> Float[Tensor, "n 3 h w"]:
    """The central part of an image with this share of its area, in the size of the image.

    Bilinear between the corners' centres and rounded to bytes, as TensorFlow's `crop_and_resize` and
    `convert_image_dtype` in OpenVLA's evaluation.
    """
    if area == 1:
        return pixels
    side = area**0.5
    ys, xs = (torch.linspace(-side, side, n, device=pixels.device, dtype=pixels.dtype) for n in pixels.shape[2:])
    grid = torch.stack([xs.expand(len(ys), -1), ys[:, None].expand(-1, len(xs))], -1)
    sampled = F.grid_sample(pixels, grid.expand(len(pixels), -1, -1, -1), align_corners=True)
    return (sampled.clamp(0, 1) * 255.5).floor() / 255


def vision_of(weights: Mapping[str, Tensor], pixels: Sequence[Any] = PIXELS) -> dict[str, Any]:
    """The arguments of `FusedEncoders` for released weights, without their last blocks."""
    dino, siglip = "vision_backbone.featurizer.", "vision_backbone.fused_featurizer."
    encoders = {}
    for name, prefix, head_dim in (("dino", dino, DINO_HEAD_DIM), ("siglip", siglip, SIGLIP_HEAD_DIM)):
        width, _, _, patch = weights[f"{prefix}patch_embed.proj.weight"].shape
        encoders[name] = {
            "hidden_size": width,
            "num_hidden_layers": blocks(weights, prefix) - 1,
            "num_attention_heads": width // head_dim,
            "patch_size": patch,
            "image_size": round(weights[f"{prefix}pos_embed"].shape[1] ** 0.5) * patch,
            "hidden_act": "gelu",
            "layer_norm_eps": 1e-6,
        }
    mlps = [len(weights[f"{prefix}blocks.0.mlp.fc1.weight"]) for prefix in (dino, siglip)]
    encoders["dino"] |= {
        "mlp_ratio": mlps[0] // encoders["dino"]["hidden_size"],
        "num_register_tokens": weights[f"{dino}reg_token"].shape[1],
    }
    encoders["siglip"]["intermediate_size"] = mlps[1]
    return {**encoders, "pixels": [[list(values) for values in pair] for pair in pixels]}


def blocks(weights: Mapping[str, Tensor], prefix: str) -> int:
    """The number of blocks of an encoder of timm."""
    return sum(name.startswith(f"{prefix}blocks.") and name.endswith(".norm1.weight") for name in weights)


def rules(weights: Mapping[str, Tensor]) -> list[Rule]:
    """Rules from the released names to ours."""
    dino, siglip = r"vision_backbone\.featurizer\.", r"vision_backbone\.fused_featurizer\."
    layers, deep = "vision.dino.encoder.layer.", "vision.siglip.vision_model.encoder.layers."
    parts = "(weight|bias)"
    last = [blocks(weights, f"vision_backbone.{name}.") - 1 for name in ("featurizer", "fused_featurizer")]
    unused = [dino + rf"(norm|blocks\.{last[0]})\..*", siglip + rf"(norm|attn_pool|blocks\.{last[1]})\..*"]
    dino_embeddings, embeddings = "vision.dino.embeddings.", "vision.siglip.vision_model.embeddings."
    return [
        *(Rule(pattern, (), lambda weight: ()) for pattern in (*unused, r".*\.rotary_emb\.inv_freq")),
        Rule(dino + "cls_token", (dino_embeddings + "cls_token",)),
        Rule(dino + "reg_token", (dino_embeddings + "register_tokens",)),
        Rule(dino + "pos_embed", (dino_embeddings + "position_embeddings",), with_class_position),
        Rule(dino + rf"patch_embed\.proj\.{parts}", (dino_embeddings + r"patch_embeddings.projection.\1",)),
        *_block_rules(dino, layers, "attention.attention.{}", ("query", "key", "value")),
        Rule(dino + rf"blocks\.(\d+)\.attn\.proj\.{parts}", (layers + r"\1.attention.output.dense.\2",)),
        Rule(dino + r"blocks\.(\d+)\.ls(\d)\.(?:scale_factor|gamma)", (layers + r"\1.layer_scale\2.lambda1",)),
        Rule(dino + rf"blocks\.(\d+)\.norm(\d)\.{parts}", (layers + r"\1.norm\2.\3",)),
        Rule(siglip + "pos_embed", (embeddings + "position_embedding.weight",), lambda weight: (weight[0],)),
        Rule(siglip + rf"patch_embed\.proj\.{parts}", (embeddings + r"patch_embedding.\1",)),
        *_block_rules(siglip, deep, "self_attn.{}_proj", ("q", "k", "v")),
        Rule(siglip + rf"blocks\.(\d+)\.attn\.proj\.{parts}", (deep + r"\1.self_attn.out_proj.\2",)),
        Rule(siglip + rf"blocks\.(\d+)\.norm(\d)\.{parts}", (deep + r"\1.layer_norm\2.\3",)),
        Rule(rf"projector\.(fc\d)\.{parts}", (r"connector.\1.\2",)),
        Rule(r"language_model\.(.*)", (r"model.\1",)),
    ]


def _block_rules(released: str, ours: str, attention: str, names: tuple[str, str, str]) -> list[Rule]:
    """Rules for the queries, keys and values of a block, which timm joins, and for its MLP."""
    targets = tuple(ours + r"\1." + attention.format(name) + r".\2" for name in names)
    return [
        Rule(released + r"blocks\.(\d+)\.attn\.qkv\.(weight|bias)", targets, lambda weight: weight.chunk(3)),
        Rule(released + r"blocks\.(\d+)\.mlp\.(fc\d)\.(weight|bias)", (ours + r"\1.mlp.\2.\3",)),
    ]


def with_class_position(positions: Float[Tensor, "1 p c"]) -> Sequence[Tensor]:
    """Positions with a first one for the class token, which has none in timm."""
    return (torch.cat([torch.zeros_like(positions[:, :1]), positions], 1),)
