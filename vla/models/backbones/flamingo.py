"""A backbone composed of a vision encoder, a connector, and cross-attention in any causal language model.

With a perceiver resampler and gated blocks it is Flamingo; with a linear layer and adapter blocks it resembles Llama
3.2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from vla.common.images import Size
from vla.models.backbone_inputs import DecoderInput, ImageInput
from vla.models.backbones.cache import ImageTokenCache, Vision, cached_images, record_image_tokens
from vla.models.backbones.connectors import build_connector
from vla.models.backbones.cross_attention import CrossAttentionBlocks
from vla.models.backbones.hf_backbone import by_row
from vla.models.backbones.language_backbone import LanguageBackbone
from vla.models.backbones.precision import without_dtype
from vla.models.backbones.vision import VisionEncoder
from vla.models.masks import run_decoder

Config = Mapping[str, Any]


class CrossAttentionVLM(LanguageBackbone):
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

    @property
    def language_model(self) -> Any:
        """See `LanguageBackbone.language_model`."""
        return self.language

    def freezable_modules(self) -> dict[str, nn.Module]:
        """See `Backbone.freezable_modules`."""
        connector = nn.ModuleList([self.connector, self.blocks])
        return {"vision": self.vision, "connector": connector, "language": self.language}

    def add_token_embeddings(self, count: int) -> None:
        """See `Backbone.add_token_embeddings`."""
        super().add_token_embeddings(count)
        self.config["language"]["vocab_size"] = self.vocab_size

    def encode_images(self, images: ImageInput) -> Vision:
        """See `Backbone.encode_images`."""
        return by_row(self.connector(self.vision(images.frames).flatten(1, 2)), images.mask)

    def embed(self, input_ids: Int[Tensor, "b l"], vision: Vision | None) -> Float[Tensor, "b l d"]:
        """See `Backbone.embed`."""
        record_image_tokens(input_ids == self.image_token_id, vision)
        return self.embed_tokens(input_ids)

    def forward(self, inputs: DecoderInput) -> tuple[Float[Tensor, "b l d"], ImageTokenCache | None]:
        """See `Backbone.forward`. Images are only possible in the first tokens of a cache.

        Raises:
            InputError: for segments with a language model without position ids (ALiBi: MPT, BLOOM).
        """
        vision, keys = inputs.vision, None
        if vision is not None and not inputs.continues:
            keys = self.blocks.keys(vision.features.to(inputs.embeds.dtype))
        image_tokens, keys = cached_images(inputs, keys)
        self.blocks.set_context(keys, image_tokens, inputs.length)
        hidden = run_decoder(self.decoder, inputs)
        self.blocks.clear_context()
        return hidden, inputs.cache
