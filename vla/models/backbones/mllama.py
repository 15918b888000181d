"""Llama 3.2 Vision: cross-attention layers between those of a language model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vla.models.backbone_inputs import DecoderInput, ImageInput
from vla.models.backbones.cache import ImageTokenCache, Vision, cached_images
from vla.models.backbones.cross_attention import latest_run
from vla.models.backbones.hf_backbone import CrossAttending, by_row, grow, insert_masked_logits
from vla.models.masks import additive, run_decoder
from vla.models.preprocessing.tiling import grids_of

SPECIAL_ROWS = 8
"""Number of input-only tokens, `<|image|>` the first: they have an embedding, but no logits."""


class Mllama(CrossAttending):
    """Llama 3.2 Vision: a token attends to the images of the latest run of image tokens before it.

    For tokens before any image, the layers of transformers attend to everything. Here such a token attends to a feature
    of zeros, whose value is zero, so that a row without images equals the language model, independent of the batch.

    An image is cut into up to four tiles (`vla.models.preprocessing.tiles.Canvas`); unused tiles are empty.
    `head_rows` is the number of outputs of the released head.
    """

    def __init__(self, model: Mapping[str, Any], *args: Any, head_rows: int | None = None, **kwargs: Any) -> None:
        super().__init__(model, *args, **kwargs)
        self.head_rows = self.model.lm_head.out_features if head_rows is None else head_rows

    @property
    def config(self) -> dict[str, Any]:
        """See `Backbone.config`."""
        return super().config | {"head_rows": self.head_rows}

    @property
    def decoder(self) -> Any:
        """See `LanguageBackbone.decoder`."""
        return self.model.model.language_model

    def freezable_modules(self) -> dict[str, nn.Module]:
        """See `Backbone.freezable_modules`."""
        model = self.model.model
        text = self.decoder
        crossing = set(text.cross_attention_layers)
        layers = [nn.ModuleList(m for i, m in enumerate(text.layers) if (i in crossing) == c) for c in (False, True)]
        return {
            "vision": model.vision_model,
            "connector": nn.ModuleList([model.multi_modal_projector, layers[1]]),
            "language": nn.ModuleList([text.embed_tokens, layers[0], text.norm, self.model.lm_head]),
        }

    def add_token_embeddings(self, count: int) -> None:
        """See `Backbone.add_token_embeddings`."""
        config = self.model.config.text_config
        grow(self.model.get_input_embeddings(), count, config.initializer_range)
        grow(self.model.lm_head, count, config.initializer_range)
        config.vocab_size += count

    def logits(self, hidden: Float[Tensor, "*b d"]) -> Float[Tensor, "*b v"]:
        """Logits in which the input-only tokens are masked."""
        return insert_masked_logits(self.model.lm_head(hidden), self.head_rows, SPECIAL_ROWS)

    def crop(self, cache: ImageTokenCache, length: int) -> ImageTokenCache:
        """See `Backbone.crop`. The cross-attention layers cache images, so they are not cropped."""
        crossing = self.decoder.cross_attention_layers
        return cache.crop_layers(length, [layer for i, layer in enumerate(cache.layers) if i not in crossing])

    def encode_images(self, images: ImageInput) -> Vision:
        """See `Backbone.encode_images`."""
        model = self.model.model
        tiling = _untiled(images.mask) if images.tiling is None else images.tiling
        rows, cut = torch.nonzero(images.mask)[:, 0], tiling[images.mask]
        # The image of each frame, and the index of the tile in the image.
        keys = rows * images.mask.shape[1] + cut[:, 0]
        _, image, counts = torch.unique_consecutive(keys, return_inverse=True, return_counts=True)
        firsts = counts.cumsum(0) - counts
        tile = torch.arange(len(keys), device=keys.device) - firsts[image]
        max_tiles = model.max_num_tiles
        pixels = images.frames
        tiles = pixels.new_zeros(len(counts), 1, max_tiles, *pixels.shape[1:])
        tiles[image, 0, tile] = pixels
        used = torch.arange(max_tiles, device=keys.device) < counts[:, None]
        ratio = _aspect_ratio_ids(max_tiles, cut[firsts, 1:])
        features = model.vision_model(
            tiles, aspect_ratio_ids=ratio[:, None], aspect_ratio_mask=used[:, None].long()
        ).last_hidden_state
        largest = int(counts.max())
        features = model.multi_modal_projector(features[:, 0, :largest].flatten(1, 2))
        present = _images_of(tiling[..., 0], images.mask)
        vision = by_row(features, present)
        flags = torch.zeros(*present.shape, largest, dtype=torch.bool, device=present.device)
        vision.used = flags.masked_scatter(present[..., None], used[:, :largest])
        return vision

    def forward(self, inputs: DecoderInput) -> tuple[Float[Tensor, "b l d"], ImageTokenCache | None]:
        """See `Backbone.forward`. Images are only possible in the first tokens of a cache, whose layers store them."""
        vision, dtype, states = inputs.vision, inputs.embeds.dtype, None
        if vision is not None and not inputs.continues:
            # The zeros to which tokens before any image attend, after a row's features.
            states = nn.functional.pad(vision.features.flatten(1, 2), (0, 0, 0, 1)).to(dtype)
        image_tokens, used = cached_images(inputs, None if vision is None else vision.used)
        mask, rows = (None, None) if used is None else self._masks(image_tokens, used, inputs.length, dtype)
        hidden = run_decoder(
            self.decoder,
            inputs,
            cross_attention_states=states,
            cross_attention_mask=mask,
            full_text_row_masked_out_mask=rows,
        )
        return hidden, inputs.cache

    def _masks(
        self, image_tokens: Bool[Tensor, "b m"], used: Bool[Tensor, "b k t"], length: int, dtype: torch.dtype
    ) -> tuple[Float[Tensor, "b 1 l s"], Float[Tensor, "b 1 l 1"]]:
        """Additive cross-attention mask of the last `length` tokens, and 0 for those that attend to no image.

        `used` is the mask of non-empty tiles.
        """
        patches = self.model.model.vision_model.num_patches
        visible = latest_run(image_tokens, used.shape[1])[:, -length:]
        has_image = visible.any(-1, keepdim=True)
        tiles = (visible[..., None] & used[:, None]).flatten(2)
        allowed = torch.cat([tiles.repeat_interleave(patches, 2), ~has_image], 2)
        return additive(allowed, dtype), has_image[:, None].to(dtype)


def _untiled(image_mask: Bool[Tensor, "b k"]) -> Int[Tensor, "b k 3"]:
    """The tiling in which each frame is a separate image."""
    numbers = torch.arange(image_mask.shape[1], device=image_mask.device).expand(image_mask.shape)
    return torch.stack([numbers, torch.ones_like(numbers), torch.ones_like(numbers)], -1)


def _images_of(numbers: Int[Tensor, "b k"], image_mask: Bool[Tensor, "b k"]) -> Bool[Tensor, "b n"]:
    """Mask of the images that each row has."""
    counts = torch.where(image_mask, numbers + 1, 0).amax(1)
    return torch.arange(int(counts.max()), device=counts.device) < counts[:, None]


def _aspect_ratio_ids(max_tiles: int, grids: Int[Tensor, "n 2"]) -> Int[Tensor, "n"]:
    """Index of each grid among all grids of up to `max_tiles`, from 1, as in the family's released code."""
    known = grids_of(max_tiles)
    numbers = [known.index((rows, columns)) + 1 for rows, columns in grids.tolist()]
    return torch.tensor(numbers, device=grids.device)
