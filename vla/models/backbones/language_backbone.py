"""What all backbones share whose tokens are embedded and predicted by a causal language model of transformers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vla.models.backbone_inputs import DecoderInput
from vla.models.backbones.cache import ImageTokenCache, Vision, record_image_tokens
from vla.models.masks import run_decoder


class LanguageBackbone(nn.Module, ABC):
    """A `Backbone` whose image features replace the image tokens, and are then tokens of a causal decoder."""

    image_token_id: int

    @property
    @abstractmethod
    def language_model(self) -> Any:
        """The model of transformers with the embedding and the output layer."""

    @property
    def decoder(self) -> Any:
        """The decoder of `language_model`, without its output layer."""
        return self.language_model.base_model

    @property
    def vocab_size(self) -> int:
        """See `Backbone.vocab_size`."""
        return len(self.language_model.get_input_embeddings().weight)

    def embed(self, input_ids: Int[Tensor, "b l"], vision: Vision | None) -> Float[Tensor, "b l d"]:
        """See `Backbone.embed`."""
        image_tokens = input_ids == self.image_token_id
        record_image_tokens(image_tokens, vision)
        embeds = self.embed_tokens(input_ids)
        if vision is None:
            return embeds
        return self.insert_features(embeds, image_tokens[..., None], vision.features.to(embeds.dtype))

    def insert_features(
        self, embeds: Float[Tensor, "b l d"], image_tokens: Bool[Tensor, "b l 1"], features: Float[Tensor, "t d"]
    ) -> Float[Tensor, "b l d"]:
        """The embeddings, with the image features at `image_tokens`, in order."""
        return embeds.masked_scatter(image_tokens, features)

    def embed_tokens(self, input_ids: Int[Tensor, "b l"]) -> Float[Tensor, "b l d"]:
        """See `Backbone.embed_tokens`."""
        return self.language_model.get_input_embeddings()(input_ids)

    def forward(self, inputs: DecoderInput) -> tuple[Float[Tensor, "b l d"], Any]:
        """See `Backbone.forward`."""
        return run_decoder(self.decoder, inputs), inputs.cache

    def next_position(self, attention_mask: Bool[Tensor, "b m"], cache: Any | None = None) -> Int[Tensor, "b"]:
        """See `Backbone.next_position`."""
        return attention_mask.sum(1)

    def logits(self, hidden: Float[Tensor, "*b d"]) -> Float[Tensor, "*b v"]:
        """See `Backbone.logits`."""
        return self.language_model.get_output_embeddings()(hidden)

    def new_cache(self) -> ImageTokenCache:
        """See `Backbone.new_cache`."""
        return ImageTokenCache()

    def crop(self, cache: ImageTokenCache, length: int) -> ImageTokenCache:
        """See `Backbone.crop`."""
        return cache.crop_layers(length, cache.layers)

    def fork(self, cache: ImageTokenCache, copies: int) -> ImageTokenCache:
        """See `Backbone.fork`."""
        return cache.forked(copies)

    def add_token_embeddings(self, count: int) -> None:
        """See `Backbone.add_token_embeddings`."""
        self.language_model.resize_token_embeddings(self.vocab_size + count, mean_resizing=False)

    def vocab_weights(self) -> tuple[Float[Tensor, "_r d"], Float[Tensor, "_r d"]]:
        """See `Backbone.vocab_weights`."""
        model = self.language_model
        return model.get_input_embeddings().weight, model.get_output_embeddings().weight
