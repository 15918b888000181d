"""Idefics, the open reproduction of Flamingo: a perceiver resampler and gated cross-attention between the layers."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vla.models.backbone_inputs import DecoderInput, ImageInput
from vla.models.backbones.cache import ImageTokenCache, Vision, cached_images
from vla.models.backbones.hf_backbone import CrossAttending, by_row, grow
from vla.models.masks import run_decoder


class Idefics(CrossAttending):
    """Idefics: each token attends to the latest image before it, if any."""

    def freezable_modules(self) -> dict[str, nn.Module]:
        """See `Backbone.freezable_modules`."""
        model = self.model.model
        resampler = [model.perceiver_resampler] if self.model.config.use_resampler else []
        return {
            "vision": model.vision_model,
            "connector": nn.ModuleList([*resampler, model.gated_cross_attn_layers]),
            "language": nn.ModuleList([model.embed_tokens, model.layers, model.norm, self.model.lm_head]),
        }

    @property
    def vocab_size(self) -> int:
        """See `Backbone.vocab_size`."""
        return int(self.model.config.vocab_size + self.model.config.additional_vocab_size)

    def add_token_embeddings(self, count: int) -> None:
        """See `Backbone.add_token_embeddings`."""
        config, embedding, head = self.model.config, self.model.model.embed_tokens, self.model.lm_head
        if config.additional_vocab_size == 0:
            like = {"device": head.weight.device, "dtype": head.weight.dtype}
            embedding.additional_embedding = nn.Embedding(0, config.hidden_size, **like)
            head.additional_fc = nn.Linear(config.hidden_size, 0, bias=False, **like)
        grow(embedding.additional_embedding, count, config.initializer_range)
        grow(head.additional_fc, count, config.initializer_range)
        config.additional_vocab_size += count
        embedding.num_additional_embeddings = head.out_additional_features = config.additional_vocab_size
        self.model.tie_weights()

    def vocab_weights(self) -> tuple[Float[Tensor, "_r d"], Float[Tensor, "_r d"]]:
        """See `Backbone.vocab_weights`."""
        embedding, head = self.model.model.embed_tokens, self.model.lm_head
        if self.model.config.additional_vocab_size == 0:
            return embedding.weight, head.weight
        return embedding.additional_embedding.weight, head.additional_fc.weight

    def encode_images(self, images: ImageInput) -> Vision:
        """See `Backbone.encode_images`."""
        model = self.model.model
        native = self.image_size == self.model.config.vision_config.image_size
        features = model.vision_model(images.frames, interpolate_pos_encoding=not native).last_hidden_state
        if self.model.config.use_resampler:
            features = model.perceiver_resampler(features)
        return by_row(features, images.mask)

    def forward(self, inputs: DecoderInput) -> tuple[Float[Tensor, "b l d"], ImageTokenCache | None]:
        """See `Backbone.forward`. Images are only possible in the first tokens of a cache."""
        embeds, vision = inputs.embeds, inputs.vision
        image_tokens, features = cached_images(inputs, None if vision is None else vision.features)
        if features is None:
            features = self._no_image(embeds)
        latest = image_tokens.long().cumsum(1)[:, -inputs.length :, None]
        visible = latest == torch.arange(1, features.shape[1] + 1, device=latest.device)
        name = "perceiver_embeddings" if self.model.config.use_resampler else "image_encoder_embeddings"
        images: dict[str, Any] = {name: features.to(embeds.dtype), "image_attention_mask": visible.to(embeds.dtype)}
        return run_decoder(self.decoder, inputs, **images), inputs.cache

    def _no_image(self, embeds: Float[Tensor, "b l d"]) -> Float[Tensor, "b 1 1 e"]:
        """A placeholder image for transformers' classes, which require one; no token attends to it."""
        return embeds.new_zeros(len(embeds), 1, 1, self.model.config.vision_config.embed_dim)
