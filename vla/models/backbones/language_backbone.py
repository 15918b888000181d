"""What all backbones share whose tokens are embedded and predicted by a causal language model of transformers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from vla.common.images import Size
from vla.models.backbone_inputs import DecoderInput
from vla.models.backbones.cache import ImageTokenCache, Vision, record_image_tokens
from vla.models.backbones.precision import without_dtype
from vla.models.backbones.vision import VisionEncoder
from vla.models.masks import run_decoder

Config = Mapping[str, Any]


class LanguageBackbone(nn.Module, ABC):
    """A `Backbone` with a causal language model; by default image features replace the image tokens, in order."""

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


class BackboneOfParts(LanguageBackbone):
    """The vision encoder and the language model of a backbone that was not released as one.

    Args:
        family: name in `build.FAMILIES`.
        vision, language: transformers configurations as dicts with `model_type` (see `VisionEncoder`).
        image_size: side of square images, or height and width [pixels].
        mean, std: of pixels, per channel.
        attention: attention implementation of the language model (sdpa, eager …); None for transformers' default.
        weights: the language model; random by default.
    """

    def __init__(
        self,
        family: str,
        vision: Config,
        language: Config,
        image_size: Size,
        image_token_id: int,
        mean: Sequence[float],
        std: Sequence[float],
        attention: str | None = None,
        weights: PreTrainedModel | None = None,
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "family": family,
            "vision": without_dtype(vision),
            "language": without_dtype(language),
            "image_size": image_size if isinstance(image_size, int) else list(image_size),
            "image_token_id": image_token_id,
            "mean": list(mean),
            "std": list(std),
            "attention": attention,
        }
        self.image_size, self.image_token_id = self.config["image_size"], image_token_id
        self.mean, self.std = (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])
        self.vision = VisionEncoder(self.config["vision"])
        if weights is None:
            config = AutoConfig.for_model(**self.config["language"])
            weights = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
        self.language: Any = weights
        self.hidden_size: int = self.language.config.hidden_size

    @property
    def language_model(self) -> Any:
        """See `LanguageBackbone.language_model`."""
        return self.language

    def add_token_embeddings(self, count: int) -> None:
        """See `Backbone.add_token_embeddings`."""
        super().add_token_embeddings(count)
        self.config["language"]["vocab_size"] = self.vocab_size
