"""Families whose images become tokens in the text: one adapter, and a table of the paths of their modules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vla.errors import InputError
from vla.models.backbone_inputs import DecoderInput, ImageInput
from vla.models.backbones.cache import ImageTokenCache, Vision, grid_steps, image_steps, record_image_tokens
from vla.models.backbones.hf_backbone import HFBackbone
from vla.models.masks import order_of, run_decoder


@dataclass(frozen=True)
class Layout:
    """Paths of a family's modules; `resizes`: its vision tower takes `interpolate_pos_encoding`."""

    vision: str
    connector: tuple[str, ...] = ("model.multi_modal_projector",)
    text: str = "model.language_model"
    resizes: bool = False


LAYOUTS = {
    "llava": Layout("model.vision_tower", resizes=True),
    "pixtral": Layout("model.vision_tower"),
    "internvl": Layout("model.vision_tower"),
    "paligemma": Layout("model.vision_tower", resizes=True),
    "qwen2_vl": Layout("model.visual", ("model.visual.merger",)),
    "qwen2_5_vl": Layout("model.visual", ("model.visual.merger",)),
    "smolvlm": Layout("model.vision_model", ("model.connector",), "model.text_model"),
    "blip-2": Layout(
        "vision_model", ("qformer", "language_projection", "query_tokens"), "language_model.model", resizes=True
    ),
}


@dataclass(frozen=True)
class PromptLayout:
    """How a prompt is read.

    Attributes:
        prefix_lm: its tokens attend to each other in both directions (PaliGemma, and SmolVLA's SmolVLM).
        first_position: position of the first token: 1 in PaliGemma, 0 in pi0 and all others.
        scale: factor of the embeddings of words and images (SmolVLA: the root of their width).
        counts_masked: positions count tokens that are not attended to, too (EVO1). As attention depends on differences
            of positions alone, padding before a row does not matter.
    """

    prefix_lm: bool
    first_position: int
    scale: float = 1.0
    counts_masked: bool = False

    def order(self, mask: Bool[Tensor, "b m"]) -> Int[Tensor, "b m"]:
        """Index of each token in its row."""
        return (
            torch.arange(mask.shape[1], device=mask.device).expand(mask.shape) if self.counts_masked else order_of(mask)
        )

    def next_position(self, mask: Bool[Tensor, "b m"]) -> Int[Tensor, "b"]:
        """Position of the token after the last one that is attended to."""
        count = ((self.order(mask) + 1) * mask).amax(1) if self.counts_masked else mask.sum(1)
        return count + self.first_position


NATIVE = ("pixtral", "qwen2_vl", "qwen2_5_vl")
"""Families with images of any size; an image is in the upper left corner of its frame."""
MROPE = ("qwen2_vl", "qwen2_5_vl")
"""Families with positions in three axes: image tokens have a row and a column, and text continues from the largest."""


class TokenFamily(HFBackbone):
    """LLaVA, Pixtral, InternVL, PaliGemma, Qwen2-VL, Qwen2.5-VL, SmolVLM, and BLIP-2 with a decoder (MiniGPT-4).

    Args:
        prompt: how a released robot policy changed the family's prompts (`PromptLayout`'s fields).
        kwargs: arguments of `HFBackbone`.
    """

    def __init__(self, *args: Any, prompt: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        self._prompt_settings = dict(prompt or {})
        super().__init__(*args, **kwargs)
        paligemma = self.family == "paligemma"
        self.prompt = PromptLayout(**{"prefix_lm": paligemma, "first_position": int(paligemma)} | self._prompt_settings)

    @property
    def config(self) -> dict[str, Any]:
        """See `Backbone.config`."""
        return super().config | ({"prompt": self._prompt_settings} if self._prompt_settings else {})

    def embed_tokens(self, input_ids: Int[Tensor, "b l"]) -> Float[Tensor, "b l d"]:
        """See `Backbone.embed_tokens`."""
        return super().embed_tokens(input_ids) * self.prompt.scale

    def image_grid(self) -> tuple[int, int]:
        """See `HFBackbone.image_grid`."""
        config, vision = self.model.config, self.model.config.vision_config
        if self.family == "blip-2":
            return 1, config.num_query_tokens
        if self.image_size % _side(vision.patch_size):
            raise InputError(f"images of {self.image_size} pixels do not divide into the patches of {self.family}")
        side = self.image_size / _side(vision.patch_size)
        if self.family in MROPE:
            side /= vision.spatial_merge_size
        elif self.family == "internvl":
            side *= config.downsample_ratio
        elif self.family == "smolvlm":
            side /= config.scale_factor
        if side != int(side):
            raise InputError(f"images of {self.image_size} pixels do not divide into the patches of {self.family}")
        if self.family == "llava" and config.vision_feature_select_strategy == "full":
            return 1, int(side) ** 2 + 1  # with the class token
        return int(side), int(side)

    @property
    def decoder(self) -> Any:
        """See `LanguageBackbone.decoder`."""
        return _at(self.model, LAYOUTS[self.family].text)

    def freezable_modules(self) -> dict[str, nn.Module]:
        """See `Backbone.freezable_modules`."""
        layout = LAYOUTS[self.family]
        connector = [_at(self.model, path) for path in layout.connector]
        vision = _at(self.model, layout.vision)
        return {
            "vision": nn.ModuleList(m for m in vision.children() if m not in connector) if _inside(layout) else vision,
            "connector": nn.ModuleList(nn.ParameterList([m]) if isinstance(m, Tensor) else m for m in connector),
            "language": nn.ModuleList([self.decoder, self.model.get_output_embeddings()]),
        }

    def encode_images(self, images: ImageInput) -> Vision:
        """See `Backbone.encode_images`."""
        sizes = None
        if self.family in NATIVE and images.content is not None:
            sizes = images.content[images.mask][:, [3, 2]].tolist()
        pixels = images.frames
        features = self.image_features(pixels, sizes)
        return Vision(features, len(features), grids=self._grids(pixels, sizes))

    def embed(self, input_ids: Int[Tensor, "b l"], vision: Vision | None) -> Float[Tensor, "b l d"]:
        """See `Backbone.embed`."""
        image_tokens = input_ids == self.image_token_id
        record_image_tokens(image_tokens, vision)
        # The image token may have no embedding.
        embeds = self.embed_tokens(input_ids.masked_fill(image_tokens, 0))
        if vision is None:
            return embeds
        if vision.grids is not None:
            vision.steps = grid_steps(image_tokens, vision.grids)
        features = vision.features.to(embeds.dtype) * self.prompt.scale
        return embeds.masked_scatter(image_tokens.unsqueeze(-1), features)

    def forward(self, inputs: DecoderInput) -> tuple[Float[Tensor, "b l d"], ImageTokenCache | None]:
        """See `Backbone.forward`. Segments are only possible in the first tokens of a cache."""
        cache, prefix = inputs.cache, self.prompt.prefix_lm
        if prefix and cache is None and (inputs.segments is None or not inputs.segments.any()):
            raise InputError(
                f"the prompt of this {self.family} has bidirectional attention: pass segments, 0 for the prompt and 1 "
                "for predicted tokens; or a cache, if all tokens are a prompt"
            )
        steps = image_steps(inputs) if self.family in MROPE else None
        order, offsets = self._order(inputs.attention_mask, steps)
        hidden = run_decoder(self.decoder, inputs, order, offsets, bidirectional=prefix)
        if cache is not None:
            cache.steps = steps
        return hidden, cache

    def next_position(
        self, attention_mask: Bool[Tensor, "b m"], cache: ImageTokenCache | None = None
    ) -> Int[Tensor, "b"]:
        """See `Backbone.next_position`."""
        if cache is not None and cache.steps is not None:
            return (cache.steps[:, : attention_mask.shape[1], 0] * attention_mask).sum(1)
        return self.prompt.next_position(attention_mask)

    def _order(self, mask: Bool[Tensor, "b m"], steps: Int[Tensor, "b m 4"] | None) -> tuple[Int[Tensor, "b m"], Any]:
        """Position and offset of each token; in M-RoPE the offsets are time, row and column in its image, (3, b, m)."""
        if steps is None:
            return self.prompt.order(mask), self.prompt.first_position
        increments = steps[..., 0] * mask
        return increments.cumsum(1) - increments, steps[..., 1:].movedim(-1, 0)

    def _grids(
        self, pixels: Float[Tensor, "n 3 h w"], sizes: Sequence[Sequence[int]] | None
    ) -> list[tuple[int, int]] | None:
        """Rows and columns of the tokens of each image, in M-RoPE families."""
        if self.family not in MROPE:
            return None
        vision = self.model.config.vision_config
        cell = vision.patch_size * vision.spatial_merge_size
        return [(height // cell, width // cell) for height, width in sizes or [pixels.shape[2:]] * len(pixels)]

    def image_features(
        self, pixels: Float[Tensor, "n 3 h w"], sizes: Sequence[Sequence[int]] | None = None
    ) -> Float[Tensor, "t d"]:
        """The tokens of all images; `sizes` are height and width of each image in its frame, where they differ."""
        model = getattr(self.model, "model", self.model)
        arguments: dict[str, Any] = {}
        if self.family in MROPE:
            config = self.model.config.vision_config
            cropped = (
                [pixels] if sizes is None else [p[None, :, :h, :w] for p, (h, w) in zip(pixels, sizes, strict=True)]
            )
            patched = [patches(images, config) for images in cropped]
            pixels, arguments["image_grid_thw"] = (torch.cat(tensors) for tensors in zip(*patched, strict=True))
        elif self.family == "pixtral":
            arguments["image_sizes"] = sizes or [pixels.shape[2:]] * len(pixels)
        elif self.family == "smolvlm":
            pixels = pixels[None]
        elif LAYOUTS[self.family].resizes:
            native = _side(self.model.config.vision_config.image_size)
            arguments["interpolate_pos_encoding"] = self.image_size != native
        features = model.get_image_features(pixels, **arguments).pooler_output
        return torch.cat([image.flatten(0, -2) for image in features])


def patches(pixels: Float[Tensor, "n 3 h w"], config: Any) -> tuple[Float[Tensor, "p c"], Int[Tensor, "n 3"]]:
    """Patches in Qwen's order, grouped by the blocks that form a token and repeated in time; and the grid."""
    n, channels, height, width = pixels.shape
    side, merge, time = config.patch_size, config.spatial_merge_size, config.temporal_patch_size
    rows, columns = height // side, width // side
    blocks = pixels.reshape(n, channels, rows // merge, merge, side, columns // merge, merge, side)
    blocks = blocks.permute(0, 2, 5, 3, 6, 1, 4, 7).unsqueeze(6).expand(-1, -1, -1, -1, -1, -1, time, -1, -1)
    return blocks.flatten(0, 4).flatten(1), torch.tensor([[1, rows, columns]] * n, device=pixels.device)


def _side(value: Any) -> int:
    """A side in pixels; InternVL has height and width."""
    return int(value if isinstance(value, int) else value[0])


def _at(module: Any, path: str) -> Any:
    for name in path.split("."):
        module = getattr(module, name)
    return module


def _inside(layout: Layout) -> bool:
    return layout.connector[0].startswith(layout.vision + ".")
