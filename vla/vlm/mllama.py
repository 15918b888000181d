"""Llama 3.2 Vision: cross-attention layers between those of a language model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vla.vlm.cache import PlacedCache, Vision, image_places
from vla.vlm.cross_attention import latest_run
from vla.vlm.masks import additive, run_decoder
from vla.vlm.released import CrossAttending, by_row, grow, with_unsaid

SPECIAL_ROWS = 8
"""Rows of the embedding, `<|image|>` the first of them, that have none in the language model's head."""


class Mllama(CrossAttending):
    """A token attends to the images of the latest run of image tokens before it; one before any image to none.

    There the layers of transformers attend to everything. Here such a token looks at a feature of zeros, whose value
    is zero: a row without images is exactly the language model, whatever rows are beside it.

    An image is one tile, which the vision model pads with empty ones. `head_rows` are the rows of the released head.
    """

    def __init__(self, model: Mapping[str, Any], *args: Any, head_rows: int | None = None, **kwargs: Any) -> None:
        super().__init__(model, *args, **kwargs)
        self.head_rows = self.model.lm_head.out_features if head_rows is None else head_rows

    @property
    def config(self) -> dict[str, Any]:
        return super().config | {"head_rows": self.head_rows}

    def parts(self) -> dict[str, nn.Module]:
        model = self.model.model
        text = model.language_model
        crossing = set(text.cross_attention_layers)
        layers = [nn.ModuleList(m for i, m in enumerate(text.layers) if (i in crossing) == c) for c in (False, True)]
        return {
            "vision": model.vision_model,
            "connector": nn.ModuleList([model.multi_modal_projector, layers[1]]),
            "language": nn.ModuleList([text.embed_tokens, layers[0], text.norm, self.model.lm_head]),
        }

    def add_rows(self, count: int) -> None:
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

    def see(self, pixel_values: Float[Tensor, "b k 3 h w"], image_mask: Bool[Tensor, "b k"]) -> Vision | None:
        if not image_mask.any():
            return None
        model = self.model.model
        pixels = pixel_values[image_mask]
        tiles = pixels.new_zeros(len(pixels), 1, model.max_num_tiles, *pixels.shape[1:])
        tiles[:, 0, 0] = pixels
        used = torch.zeros(len(pixels), 1, model.max_num_tiles, dtype=torch.long, device=pixels.device)
        used[..., 0] = 1
        seen = model.vision_model(tiles, aspect_ratio_ids=used[..., 0], aspect_ratio_mask=used).last_hidden_state
        seen = model.multi_modal_projector(seen[:, 0, 0])
        return by_row(seen, image_mask)

    def hidden(
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
        states = None
        if first and vision is not None:
            # At the end of a row's features, the zeros that a token without an image looks at.
            states = nn.functional.pad(vision.features.flatten(1, 2), (0, 0, 0, 1)).to(embeds.dtype)
        keys = self._cached_keys(cache) if states is None else states.shape[1]
        looks, rows = self._looks(places, keys, length, embeds.dtype) if keys else (None, None)
        told = {"cross_attention_states": states, "cross_attention_mask": looks, "full_text_row_masked_out_mask": rows}
        language = self.model.model.language_model
        hidden = run_decoder(language, embeds, attention_mask, cache, segments, **told)
        if cache is not None:
            cache.places = places
        return hidden, cache

    def _cached_keys(self, cache: PlacedCache | None) -> int:
        layer = self.model.model.language_model.cross_attention_layers[0]
        return 0 if cache is None else int(cache.get_seq_length(layer))

    def _looks(
        self, places: Bool[Tensor, "b m"], keys: int, length: int, dtype: torch.dtype
    ) -> tuple[Float[Tensor, "b 1 l k"], Float[Tensor, "b 1 l 1"]]:
        """What is added to the last `length` tokens' cross-attention scores, and 0 where a token sees no image."""
        patches = self.model.model.vision_model.num_patches
        seen = latest_run(places, (keys - 1) // patches)[:, -length:]
        some = seen.any(-1, keepdim=True)
        allowed = torch.cat([seen.repeat_interleave(patches, 2), ~some], 2)
        return additive(allowed, dtype), some[:, None].to(dtype)
