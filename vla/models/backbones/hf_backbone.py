"""The base classes of adapters for vision-language models of transformers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel

from vla.models.backbones.cache import Vision, record_image_tokens
from vla.models.backbones.language_backbone import LanguageBackbone
from vla.models.backbones.precision import without_dtype

Pixel = Sequence[float]


def family_of(config: Any) -> str:
    """The family of a transformers configuration; Pixtral uses LLaVA's classes with a different vision tower."""
    pixtral = config.model_type == "llava" and config.vision_config.model_type == "pixtral"
    return "pixtral" if pixtral else config.model_type


class HFBackbone(LanguageBackbone):
    """A vision-language model of transformers as a `Backbone`.

    Args:
        model: transformers configuration as a dict with `model_type`.
        image_size: side [pixels] of a square image with `tokens_per_image` tokens; in families with other sizes the
            number of tokens depends on the size.
        mean, std: of pixels, per channel.
        attention: attention implementation (sdpa, eager …); None for transformers' default.
        weights: a model of this configuration; random by default.
    """

    def __init__(
        self,
        model: Mapping[str, Any],
        image_token_id: int,
        image_size: int,
        mean: Pixel,
        std: Pixel,
        attention: str | None = None,
        weights: PreTrainedModel | None = None,
    ) -> None:
        super().__init__()
        if weights is None:
            weights = AutoModelForImageTextToText.from_config(
                AutoConfig.for_model(**model), attn_implementation=attention
            )
        self.model: Any = weights
        self.family = family_of(weights.config)
        self.image_token_id, self.image_size = image_token_id, image_size
        self.mean, self.std = tuple(mean), tuple(std)
        self._rest: dict[str, Any] = {
            "image_token_id": image_token_id,
            "image_size": image_size,
            "mean": list(mean),
            "std": list(std),
            "attention": attention,
        }
        rows, columns = self.image_grid()
        self.tokens_per_image = rows * columns
        # The training stage decides what is frozen; Idefics freezes its language model on construction.
        self.requires_grad_(True)

    @property
    def config(self) -> dict[str, Any]:
        """See `Backbone.config`."""
        return {"family": self.family, "model": without_dtype(self.model.config.to_dict()), **self._rest}

    @property
    def language_model(self) -> Any:
        """See `LanguageBackbone.language_model`."""
        return self.model

    @property
    def hidden_size(self) -> int:
        """Width of the hidden states."""
        return int(self.model.config.get_text_config().hidden_size)

    @abstractmethod
    def image_grid(self) -> tuple[int, int]:
        """Rows and columns of the tokens of an image of `image_size`."""


class CrossAttending(HFBackbone):
    """A family with cross-attention: each image is one token in the text, and later tokens attend to its features."""

    def image_grid(self) -> tuple[int, int]:
        """See `HFBackbone.image_grid`."""
        return 1, 1

    def embed(self, input_ids: Int[Tensor, "b l"], vision: Vision | None) -> Float[Tensor, "b l d"]:
        """See `Backbone.embed`."""
        record_image_tokens(input_ids == self.image_token_id, vision)
        return self.embed_tokens(input_ids)


def by_row(encoded: Float[Tensor, "n p d"], image_mask: Bool[Tensor, "b k"]) -> Vision:
    """Arranges image features by row, (b, k, p, d), with zeros for missing images."""
    features = encoded.new_zeros(*image_mask.shape, *encoded.shape[1:])
    return Vision(features.masked_scatter(image_mask[..., None, None], encoded), len(encoded))


def grow(module: nn.Embedding | nn.Linear, count: int, std: float) -> None:
    """Appends `count` random rows to an embedding or to the outputs of a linear layer, in place.

    A negative count removes the last rows.
    """
    old = module.weight
    new = torch.empty(max(count, 0), old.shape[1], dtype=old.dtype, device=old.device).normal_(std=std)
    module.weight = nn.Parameter(torch.cat([old.detach()[: len(old) + min(count, 0)], new]))
    if isinstance(module, nn.Embedding):
        module.num_embeddings += count
    else:
        module.out_features += count


def insert_masked_logits(logits: Float[Tensor, "*b h"], first: int, count: int) -> Float[Tensor, "*b v"]:
    """Inserts `count` masked logits before index `first`, for input-only tokens that must never be generated."""
    masked = logits.new_full((*logits.shape[:-1], count), torch.finfo(logits.dtype).min / 2)
    return torch.cat([logits[..., :first], masked, logits[..., first:]], -1)
