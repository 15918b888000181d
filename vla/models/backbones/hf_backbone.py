"""What the adapters of transformers' own vision-language models share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel

from vla.errors import InputError
from vla.models.backbones.cache import PlacedCache, Vision
from vla.models.backbones.precision import without_dtype

Pixel = Sequence[float]


def family_of(config: Any) -> str:
    """The name of a transformers configuration's family; Pixtral has LLaVA's classes and a different vision tower."""
    pixtral = config.model_type == "llava" and config.vision_config.model_type == "pixtral"
    return "pixtral" if pixtral else config.model_type


class HFBackbone(nn.Module, ABC):
    """A vision-language model of transformers behind `Backbone`, with its own weights.

    `model` is its transformers configuration as a dict with `model_type`; `weights` a model made of it, random ones
    without; `attention` is how it attends (sdpa, eager …; None: transformers chooses). `image_size` is the side of a
    square image that has `tokens_per_image`; where a family takes others, they have as many as their size asks for.
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
            rest = {k: v for k, v in model.items() if k != "model_type"}
            config = AutoConfig.for_model(model["model_type"], **rest)
            weights = AutoModelForImageTextToText.from_config(config, attn_implementation=attention)
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
        # What is frozen is the stage's choice: Idefics freezes its text by itself.
        self.requires_grad_(True)

    @property
    def config(self) -> dict[str, Any]:
        return {"family": self.family, "model": without_dtype(self.model.config.to_dict()), **self._rest}

    @property
    def hidden_size(self) -> int:
        return int(self.model.config.get_text_config().hidden_size)

    @property
    def vocab_size(self) -> int:
        return len(self.model.get_input_embeddings().weight)

    @abstractmethod
    def image_grid(self) -> tuple[int, int]:
        """Rows and columns of the tokens of an image of `image_size`."""

    def embed_tokens(self, input_ids: Int[Tensor, "b l"]) -> Float[Tensor, "b l d"]:
        return self.model.get_input_embeddings()(input_ids)

    def next_position(self, attention_mask: Bool[Tensor, "b m"], cache: Any | None = None) -> Int[Tensor, "b"]:
        return attention_mask.sum(1)

    def logits(self, hidden: Float[Tensor, "*b d"]) -> Float[Tensor, "*b v"]:
        return self.model.get_output_embeddings()(hidden)

    def new_cache(self) -> PlacedCache:
        return PlacedCache()

    def crop(self, cache: PlacedCache, length: int) -> PlacedCache:
        return cache.keep(length, cache.layers)

    def fork(self, cache: PlacedCache, copies: int) -> PlacedCache:
        return cache.forked(copies)

    def add_token_embeddings(self, count: int) -> None:
        self.model.resize_token_embeddings(self.vocab_size + count, mean_resizing=False)

    def vocab_weights(self) -> tuple[Float[Tensor, "_r d"], Float[Tensor, "_r d"]]:
        return self.model.get_input_embeddings().weight, self.model.get_output_embeddings().weight


class CrossAttending(HFBackbone):
    """A family whose images stay beside the text: one token stands for each, and others look at its features."""

    def image_grid(self) -> tuple[int, int]:
        return 1, 1

    def embed(self, input_ids: Int[Tensor, "b l"], vision: Vision | None) -> Float[Tensor, "b l d"]:
        note_places(input_ids == self.image_token_id, vision)
        return self.embed_tokens(input_ids)


def by_row(seen: Float[Tensor, "n p d"], image_mask: Bool[Tensor, "b k"]) -> Vision:
    """Features (b k p d), zeros where a row has no such image."""
    features = seen.new_zeros(*image_mask.shape, *seen.shape[1:])
    return Vision(features.masked_scatter(image_mask[..., None, None], seen), len(seen))


def note_places(places: Bool[Tensor, "b l"], vision: Vision | None) -> None:
    """Notes in `vision` where it is in the text. Raises InputError unless each of its tokens has one place."""
    expected = 0 if vision is None else vision.tokens
    if (found := int(places.sum())) != expected:
        raise InputError(
            f"the text has {found} tokens of images, and the images that were seen {expected}: "
            "write as many as the images have"
        )
    if vision is not None:
        vision.places = places


def grow(module: nn.Embedding | nn.Linear, count: int, std: float) -> None:
    """Adds `count` random rows at the end of an embedding or of a linear map's outputs, in place."""
    old = module.weight
    new = torch.empty(count, old.shape[1], dtype=old.dtype, device=old.device).normal_(std=std)
    module.weight = nn.Parameter(torch.cat([old.detach(), new]))
    if isinstance(module, nn.Embedding):
        module.num_embeddings += count
    else:
        module.out_features += count


def with_unsaid(logits: Float[Tensor, "*b h"], first: int, count: int) -> Float[Tensor, "*b v"]:
    """Logits with `count` more before row `first`, of rows that the head lacks: they are never said."""
    unsaid = logits.new_full((*logits.shape[:-1], count), torch.finfo(logits.dtype).min / 2)
    return torch.cat([logits[..., :first], unsaid, logits[..., first:]], -1)
