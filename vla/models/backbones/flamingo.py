"""A backbone composed of a vision encoder, a connector, and cross-attention in any causal language model.

With a perceiver resampler and gated blocks it is Flamingo; with a linear layer and adapter blocks it resembles Llama
3.2.
"""

from __future__ import annotations

from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn

from vla.models.backbone_inputs import DecoderInput, ImageInput
from vla.models.backbones.cache import ImageTokenCache, Vision, cached_images, record_image_tokens
from vla.models.backbones.connectors import build_connector
from vla.models.backbones.cross_attention import CrossAttentionBlocks
from vla.models.backbones.hf_backbone import by_row
from vla.models.backbones.language_backbone import BackboneOfParts, Config
from vla.models.masks import run_decoder


class CrossAttentionVLM(BackboneOfParts):
    """A language model with cross-attention to images; tokens after an `image_token_id` attend to its image.

    Before training its logits equal those of the language model exactly.

    Args:
        connector, blocks: a "kind" and its options (see `build_connector`, `CrossAttentionBlocks`).
        parts, named: vision, language, image_size, image_token_id, mean, std, attention, weights, as in
            `BackboneOfParts`.
    """

    tokens_per_image = 1

    def __init__(self, *parts: Any, connector: Config, blocks: Config, **named: Any) -> None:
        super().__init__("flamingo", *parts, **named)
        self.config |= {"connector": dict(connector), "blocks": dict(blocks)}
        # Flamingo's image features have the encoder's width, an adapter's the decoder's.
        width = self.vision.width if blocks.get("kind", "flamingo") == "flamingo" else self.hidden_size
        self.connector = build_connector(
            vision_width=self.vision.width, grid=self.vision.grid(self.image_size), hidden_size=width, **connector
        )
        self.blocks = CrossAttentionBlocks(self.language, width, **blocks)

    def freezable_modules(self) -> dict[str, nn.Module]:
        """See `Backbone.freezable_modules`."""
        connector = nn.ModuleList([self.connector, self.blocks])
        return {"vision": self.vision, "connector": connector, "language": self.language}

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
