"""A backbone composed of a vision encoder, a connector and a causal language model (LLaVA, InternVL, BLIP-2)."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

from vla.common.images import Size
from vla.models.backbones.backbone import ImageLayout
from vla.models.backbones.connectors import build_connector
from vla.models.backbones.precision import without_dtype
from vla.models.backbones.vision import build_vision
from vla.models.masks import run_decoder

Config = Mapping[str, Any]
MLP: Config = {"kind": "mlp", "norm": True}


class ComposedVLM(nn.Module):
    """Any vision encoder of transformers, any connector, and any causal LM of transformers.

    Learned position embeddings are added to the tokens of a feature map (ConvNeXt, Swin), since a convolutional encoder
    has none, if the connector has one token per cell.

    Args:
        vision, language: transformers configurations as dicts with `model_type`.
        image_size: side of square images, or height and width [pixels].
        connector: a "kind" of `connectors.KINDS` with its options.
        mean, std: of pixels, per channel.
    """

    def __init__(
        self,
        vision: Config,
        language: Config,
        image_size: Size,
        image_token_id: int,
        attention: str = "sdpa",
        connector: Config = MLP,
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.25, 0.25, 0.25),
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "family": "composed",
            "vision": without_dtype(vision),
            "language": without_dtype(language),
            "image_size": image_size if isinstance(image_size, int) else list(image_size),
            "image_token_id": image_token_id,
            "attention": attention,
            "connector": dict(connector),
            "mean": list(mean),
            "std": list(std),
        }
        self.mean, self.std = (mean[0], mean[1], mean[2]), (std[0], std[1], std[2])
        self.vision = build_vision(self.config["vision"])
        self.language = AutoModelForCausalLM.from_config(
            _config(self.config["language"]), attn_implementation=attention
        )
        self.image_size, self.image_token_id = self.config["image_size"], image_token_id
        self.hidden_size: int = self.language.config.hidden_size
        rows, columns = self.vision.grid(image_size)
        made = build_connector(
            vision_width=self.vision.width, grid=(rows, columns), hidden_size=self.hidden_size, **connector
        )
        self.tokens_per_image: int = made.tokens  # type: ignore[assignment]
        cells = None
        if self.vision.maps and self.tokens_per_image == rows * columns:
            cells = nn.Parameter(_grid_positions(rows, columns, self.hidden_size) * 0.2)
        made.register_parameter("cells", cells)
        self.connector = made
        self.register_load_state_dict_pre_hook(_cells_of_the_connector)

    @property
    def vocab_size(self) -> int:
        """See `Backbone.vocab_size`."""
        return int(self.language.config.vocab_size)

    def freezable_modules(self) -> dict[str, nn.Module]:
        """See `Backbone.freezable_modules`."""
        return {"vision": self.vision.model, "connector": self.connector, "language": self.language}

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
    ) -> Float[Tensor, "n t d"] | None:
        """The tokens of each image; None without images."""
        if not image_mask.any():
            return None
        tokens: Tensor = self.connector(self.vision(pixel_values[image_mask]).flatten(1, 2))
        cells: Any = self.connector.cells
        return tokens if cells is None else tokens + cells

    def embed(
        self, input_ids: Int[Tensor, "b l"], vision: Float[Tensor, "n t d"] | None = None
    ) -> Float[Tensor, "b l d"]:
        """See `Backbone.embed`."""
        embeds = self.embed_tokens(input_ids)
        if vision is None:
            return embeds
        is_image = (input_ids == self.image_token_id).unsqueeze(-1)
        return embeds.masked_scatter(is_image, vision.to(embeds.dtype))

    def embed_tokens(self, input_ids: Int[Tensor, "b l"]) -> Float[Tensor, "b l d"]:
        """See `Backbone.embed_tokens`."""
        embeds: Tensor = self.language.get_input_embeddings()(input_ids)
        return embeds

    def forward(
        self,
        embeds: Float[Tensor, "b l d"],
        attention_mask: Bool[Tensor, "b m"],
        cache: Any | None = None,
        vision: Any | None = None,
        segments: Int[Tensor, "b l"] | None = None,
    ) -> tuple[Float[Tensor, "b l d"], Any]:
        """See `Backbone.forward`."""
        return run_decoder(self.language.base_model, embeds, attention_mask, cache, segments), cache

    def new_cache(self) -> DynamicCache:
        """See `Backbone.new_cache`."""
        return DynamicCache(config=self.language.config)

    def crop(self, cache: DynamicCache, length: int) -> DynamicCache:
        """See `Backbone.crop`."""
        cache.crop(length)
        return cache

    def fork(self, cache: DynamicCache, copies: int) -> DynamicCache:
        """See `Backbone.fork`."""
        forked = copy.deepcopy(cache)
        forked.batch_repeat_interleave(copies)
        return forked

    def next_position(self, attention_mask: Bool[Tensor, "b m"], cache: Any | None = None) -> Int[Tensor, "b"]:
        """See `Backbone.next_position`."""
        return attention_mask.sum(1)

    def logits(self, hidden: Float[Tensor, "*b d"]) -> Float[Tensor, "*b v"]:
        """See `Backbone.logits`."""
        return self.language.get_output_embeddings()(hidden)


def _grid_positions(rows: int, columns: int, size: int) -> Float[Tensor, "n d"]:
    """Initial position embeddings: random mixtures of sines and cosines of row and column, `size` / 4 of each.

    Neighbouring cells have similar embeddings, at the scale of the features.
    """
    frequencies = torch.pi * torch.arange(1, size // 4 + 1) ** 0.5
    y, x = torch.meshgrid(torch.linspace(0, 1, rows), torch.linspace(0, 1, columns), indexing="ij")
    angles = [axis.reshape(-1, 1) * frequencies for axis in (y, x)]
    waves = torch.cat([f(a) for a in angles for f in (torch.sin, torch.cos)], 1)
    return waves @ torch.randn(waves.shape[1], size) * (2 / waves.shape[1]) ** 0.5


def _config(values: Config) -> Any:
    rest = {k: v for k, v in values.items() if k != "model_type"}
    return AutoConfig.for_model(values["model_type"], **rest)


def _cells_of_the_connector(module: nn.Module, weights: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Loads weights of earlier versions, whose positions were not in the connector."""
    if f"{prefix}cells" in weights:
        weights[f"{prefix}connector.cells"] = weights.pop(f"{prefix}cells")
