"""A backbone composed of a vision encoder, a connector, and cross-attention in any causal language model.

With a perceiver resampler and gated blocks it is Flamingo; with a linear layer and adapter blocks it resembles Llama
3.2.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from vla.common.images import Size
from vla.errors import InputError
from vla.models.backbones.backbone import ImageLayout
from vla.models.backbones.cache import ImageTokenCache, Vision, image_token_mask
from vla.models.backbones.connectors import build_connector
from vla.models.backbones.cross_attention import CrossAttentionBlocks
from vla.models.backbones.hf_backbone import by_row, record_image_tokens
from vla.models.backbones.precision import without_dtype
from vla.models.backbones.vision import VisionEncoder
from vla.models.masks import mask_and_positions, order_of, takes_blocks

Config = Mapping[str, Any]


class CrossAttentionVLM(nn.Module):
    """A language model with cross-attention to images; tokens after an `image_token_id` attend to its image.

    Before training its logits equal those of the language model exactly.

    Args:
        vision, language: transformers configurations as dicts with `model_type` (see `VisionEncoder`).
        connector, blocks: a "kind" and its options (see `build_connector`, `CrossAttentionBlocks`).
        weights: the language model; random by default.
    """

    tokens_per_image = 1

    def __init__(
        self,
        vision: Config,
        language: Config,
        image_size: Size,
        image_token_id: int,
        connector: Config,
        blocks: Config,
        mean: Sequence[float],
        std: Sequence[float],
        attention: str | None = None,
        weights: PreTrainedModel | None = None,
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "family": "flamingo",
            "vision": without_dtype(vision),
            "language": without_dtype(language),
            "image_size": image_size if isinstance(image_size, int) else list(image_size),
            "image_token_id": image_token_id,
            "connector": dict(connector),
            "blocks": dict(blocks),
            "mean": list(mean),
            "std": list(std),
            "attention": attention,
        }
        self.image_size, self.image_token_id = self.config["image_size"], image_token_id
        self.mean, self.std = tuple(mean), tuple(std)
        self.vision = VisionEncoder(self.config["vision"])
        if weights is None:
            rest = {k: v for k, v in self.config["language"].items() if k != "model_type"}
            config = AutoConfig.for_model(language["model_type"], **rest)
            weights = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
        self.language: Any = weights
        self.hidden_size: int = self.language.config.hidden_size
        # Flamingo's image features have the encoder's width, an adapter's the decoder's.
        width = self.vision.width if blocks.get("kind", "flamingo") == "flamingo" else self.hidden_size
        self.connector = build_connector(
            vision_width=self.vision.width, grid=self.vision.grid(image_size), hidden_size=width, **connector
        )
        self.blocks = CrossAttentionBlocks(self.language, width, **blocks)
        self._takes_positions = "position_ids" in inspect.signature(self.language.base_model.forward).parameters

    @property
    def vocab_size(self) -> int:
        """See `Backbone.vocab_size`."""
        return len(self.language.get_input_embeddings().weight)

    def freezable_modules(self) -> dict[str, nn.Module]:
        """See `Backbone.freezable_modules`."""
        connector = nn.ModuleList([self.connector, self.blocks])
        return {"vision": self.vision, "connector": connector, "language": self.language}

    def add_token_embeddings(self, count: int) -> None:
        """See `Backbone.add_token_embeddings`."""
        self.language.resize_token_embeddings(self.vocab_size + count, mean_resizing=False)
        self.config["language"]["vocab_size"] = self.vocab_size

    def vocab_weights(self) -> tuple[Float[Tensor, "_r d"], Float[Tensor, "_r d"]]:
        """See `Backbone.vocab_weights`."""
        return self.language.get_input_embeddings().weight, self.language.get_output_embeddings().weight

    def encode_images(
        self,
        pixel_values: Float[Tensor, "b k 3 h w"],
        image_mask: Bool[Tensor, "b k"],
        layout: ImageLayout | None = None,
    ) -> Vision | None:
        """See `Backbone.encode_images`."""
        if not image_mask.any():
            return None
        features = self.vision(pixel_values[image_mask]).flatten(1, 2)
        return by_row(self.connector(features), image_mask)

    def embed(self, input_ids: Int[Tensor, "b l"], vision: Vision | None) -> Float[Tensor, "b l d"]:
        """See `Backbone.embed`."""
        record_image_tokens(input_ids == self.image_token_id, vision)
        return self.embed_tokens(input_ids)

    def embed_tokens(self, input_ids: Int[Tensor, "b l"]) -> Float[Tensor, "b l d"]:
        """See `Backbone.embed_tokens`."""
        return self.language.get_input_embeddings()(input_ids)

    def forward(
        self,
        embeds: Float[Tensor, "b l d"],
        attention_mask: Bool[Tensor, "b m"],
        cache: ImageTokenCache | None = None,
        vision: Vision | None = None,
        segments: Int[Tensor, "b l"] | None = None,
    ) -> tuple[Float[Tensor, "b l d"], ImageTokenCache | None]:
        """See `Backbone.forward`. Images are only possible in the first tokens of a cache.

        Raises:
            InputError: for segments with a language model without position ids (ALiBi: MPT, BLOOM).
        """
        if segments is not None and segments.any() and not self._takes_positions:
            raise InputError(f"{self.language.config.model_type} takes no position ids: it does not support segments")
        length = embeds.shape[1]
        image_tokens = image_token_mask(vision, cache, attention_mask, length)
        if cache is not None and attention_mask.shape[1] > length:
            keys = cache.features
        else:
            keys = None if vision is None else self.blocks.keys(vision.features.to(embeds.dtype))
        if cache is not None:
            cache.image_tokens, cache.features = image_tokens, keys
        self.blocks.set_context(keys, image_tokens, length)
        order, blocks = order_of(attention_mask), takes_blocks(self.language)
        mask, positions = mask_and_positions(attention_mask, order, segments, length, embeds.dtype, blocks=blocks)
        out = self.language.base_model(
            inputs_embeds=embeds,
            attention_mask=mask,
            past_key_values=cache,
            use_cache=cache is not None,
            **({"position_ids": positions[:, -length:]} if self._takes_positions else {}),
        )
        self.blocks.clear_context()
        return out.last_hidden_state, cache

    def next_position(self, attention_mask: Bool[Tensor, "b m"], cache: Any | None = None) -> Int[Tensor, "b"]:
        """See `Backbone.next_position`."""
        return attention_mask.sum(1)

    def logits(self, hidden: Float[Tensor, "*b d"]) -> Float[Tensor, "*b v"]:
        """See `Backbone.logits`."""
        return self.language.get_output_embeddings()(hidden)

    def new_cache(self) -> ImageTokenCache:
        """See `Backbone.new_cache`."""
        return ImageTokenCache()

    def crop(self, cache: ImageTokenCache, length: int) -> ImageTokenCache:
        """See `Backbone.crop`."""
        return cache.crop_layers(length, cache.layers)

    def fork(self, cache: ImageTokenCache, copies: int) -> ImageTokenCache:
        """See `Backbone.fork`."""
        return cache.forked(copies)
