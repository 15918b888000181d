"""Llama 3.2 Vision: cross-attention layers between those of a language model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vla.models.backbones.backbone import ImageLayout
from vla.models.backbones.cache import PlacedCache, Vision, image_places
from vla.models.backbones.cross_attention import latest_run
from vla.models.backbones.hf_backbone import CrossAttending, by_row, grow, with_unsaid
from vla.models.masks import additive, run_decoder
from vla.models.preprocessing.tiling import grids_of

SPECIAL_ROWS = 8
"""Rows of the embedding, `<|image|>` the first of them, that have none in the language model's head."""


class Mllama(CrossAttending):
    """A token attends to the images of the latest run of image tokens before it; one before any image to none.

    There the layers of transformers attend to everything. Here such a token looks at a feature of zeros, whose value
    is zero: a row without images is exactly the language model, whatever rows are beside it.

    An image is cut into up to four tiles (`vla.models.preprocessing.tiles.Canvas`), empty ones beside them. `head_rows`
    are the rows of the released head.
    """

    def __init__(self, model: Mapping[str, Any], *args: Any, head_rows: int | None = None, **kwargs: Any) -> None:
        super().__init__(model, *args, **kwargs)
        self.head_rows = self.model.lm_head.out_features if head_rows is None else head_rows

    @property
    def config(self) -> dict[str, Any]:
        return super().config | {"head_rows": self.head_rows}

    def freezable_modules(self) -> dict[str, nn.Module]:
        model = self.model.model
        text = model.language_model
        crossing = set(text.cross_attention_layers)
        layers = [nn.ModuleList(m for i, m in enumerate(text.layers) if (i in crossing) == c) for c in (False, True)]
        return {
            "vision": model.vision_model,
            "connector": nn.ModuleList([model.multi_modal_projector, layers[1]]),
            "language": nn.ModuleList([text.embed_tokens, layers[0], text.norm, self.model.lm_head]),
        }

    def add_token_embeddings(self, count: int) -> None:
        config = self.model.config.text_config
        grow(self.model.get_input_embeddings(), count, config.initializer_range)
        grow(self.model.lm_head, count, config.initializer_range)
        config.vocab_size += count

    def logits(self, hidden: Float[Tensor, "*b d"]) -> Float[Tensor, "*b v"]:
        """The special rows are never said."""
        return with_unsaid(self.model.lm_head(hidden), self.head_rows, SPECIAL_ROWS)

    def crop(self, cache: PlacedCache, length: int) -> PlacedCache:
        """The cross-attention layers hold images, not tokens."""
        crossing = self.model.model.language_model.cross_attention_layers
        return cache.keep(length, [layer for i, layer in enumerate(cache.layers) if i not in crossing])

    def encode_images(
        self,
        pixel_values: Float[Tensor, "b k 3 h w"],
        image_mask: Bool[Tensor, "b k"],
        layout: ImageLayout | None = None,
    ) -> Vision | None:
        if not image_mask.any():
            return None
        model = self.model.model
        tiling = layout.tiling if layout is not None else _one_each(image_mask)
        rows, frames = torch.nonzero(image_mask, as_tuple=True)
        cut = tiling[rows, frames]
        # Which image of the batch a frame is of, and which of its tiles.
        keys = rows * image_mask.shape[1] + cut[:, 0]
        _, image, counts = torch.unique_consecutive(keys, return_inverse=True, return_counts=True)
        firsts = counts.cumsum(0) - counts
        tile = torch.arange(len(keys), device=keys.device) - firsts[image]
        most = model.max_num_tiles
        tiles = pixel_values.new_zeros(len(counts), 1, most, *pixel_values.shape[2:])
        tiles[image, 0, tile] = pixel_values[rows, frames]
        used = torch.arange(most, device=keys.device) < counts[:, None]
        ratio = _aspect_ratio_ids(most, cut[firsts, 1:])
        seen = model.vision_model(
            tiles, aspect_ratio_ids=ratio[:, None], aspect_ratio_mask=used[:, None].long()
        ).last_hidden_state
        deepest = int(counts.max())
        seen = model.multi_modal_projector(seen[:, 0, :deepest].flatten(1, 2))
        there = _images_of(tiling[..., 0], image_mask)
        vision = by_row(seen, there)
        flags = torch.zeros(*there.shape, deepest, dtype=torch.bool, device=there.device)
        vision.used = flags.masked_scatter(there[..., None], used[:, :deepest])
        return vision

    def forward(
        self,
        embeds: Float[Tensor, "b l d"],
        attention_mask: Bool[Tensor, "b m"],
        cache: PlacedCache | None = None,
        vision: Vision | None = None,
        segments: Int[Tensor, "b l"] | None = None,
    ) -> tuple[Float[Tensor, "b l d"], PlacedCache | None]:
        """See `Backbone.hidden`. The images of a cache are those of its first tokens: its layers keep them."""
        length = embeds.shape[1]
        first = attention_mask.shape[1] == length
        places = image_places(vision, cache, attention_mask, length)
        states, used = None, None
        if first and vision is not None:
            # At the end of a row's features, the zeros that a token without an image looks at.
            states = nn.functional.pad(vision.features.flatten(1, 2), (0, 0, 0, 1)).to(embeds.dtype)
            used = vision.used
        elif not first and cache is not None:
            used = cache.features
        looks, rows = (None, None) if used is None else self._looks(places, used, length, embeds.dtype)
        told = {"cross_attention_states": states, "cross_attention_mask": looks, "full_text_row_masked_out_mask": rows}
        language = self.model.model.language_model
        hidden = run_decoder(language, embeds, attention_mask, cache, segments, **told)
        if cache is not None:
            cache.places, cache.features = places, used
        return hidden, cache

    def _looks(
        self, places: Bool[Tensor, "b m"], used: Bool[Tensor, "b k t"], length: int, dtype: torch.dtype
    ) -> tuple[Float[Tensor, "b 1 l s"], Float[Tensor, "b 1 l 1"]]:
        """What is added to the last `length` tokens' cross-attention scores, and 0 where a token sees no image.

        `used` says which of an image's tiles are not empty."""
        patches = self.model.model.vision_model.num_patches
        seen = latest_run(places, used.shape[1])[:, -length:]
        some = seen.any(-1, keepdim=True)
        tiles = (seen[..., None] & used[:, None]).flatten(2)
        allowed = torch.cat([tiles.repeat_interleave(patches, 2), ~some], 2)
        return additive(allowed, dtype), some[:, None].to(dtype)


def _one_each(image_mask: Bool[Tensor, "b k"]) -> Int[Tensor, "b k 3"]:
    """Each frame an image of its own."""
    numbers = torch.arange(image_mask.shape[1], device=image_mask.device).expand(image_mask.shape)
    return torch.stack([numbers, torch.ones_like(numbers), torch.ones_like(numbers)], -1)


def _images_of(numbers: Int[Tensor, "b k"], image_mask: Bool[Tensor, "b k"]) -> Bool[Tensor, "b n"]:
    """Which images each row has."""
    counts = torch.where(image_mask, numbers + 1, 0).amax(1)
    return torch.arange(int(counts.max()), device=counts.device) < counts[:, None]


def _aspect_ratio_ids(most: int, grids: Int[Tensor, "n 2"]) -> Int[Tensor, "n"]:
    """The number of each grid of tiles among all of up to `most`, from 1, as in the family's released code."""
    known = grids_of(most)
    numbers = [known.index((rows, columns)) + 1 for rows, columns in grids.tolist()]
    return torch.tensor(numbers, device=grids.device)
