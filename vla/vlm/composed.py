"""A backbone composed of a vision encoder, an MLP connector and a causal language model (LLaVA-1.5)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AutoBackbone, AutoConfig, AutoModelForCausalLM, DynamicCache

from vla.vlm.masks import mask_and_positions, order_of

Config = Mapping[str, Any]


class ComposedVLM(nn.Module):
    """Any transformers vision backbone with a feature map, an MLP, and any transformers causal LM.

    `vision` and `language` are transformers configurations as dicts with `model_type`. The encoder's
    feature map (c, g, g) becomes g² tokens; a learned position per cell is added, since a convolutional
    encoder carries none.
    """

    def __init__(
        self, vision: Config, language: Config, image_size: int, image_token_id: int, attention: str = "sdpa"
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            "vision": dict(vision),
            "language": dict(language),
            "image_size": image_size,
            "image_token_id": image_token_id,
            "attention": attention,
        }
        self.vision = AutoBackbone.from_config(_config(vision))
        self.language = AutoModelForCausalLM.from_config(_config(language), attn_implementation=attention)
        self.image_size, self.image_token_id = image_size, image_token_id
        with torch.no_grad():
            channels, rows, columns = self._features(torch.zeros(1, 3, image_size, image_size)).shape[1:]
        self.hidden_size: int = self.language.config.hidden_size
        self.tokens_per_image: int = rows * columns
        self.connector = nn.Sequential(
            nn.LayerNorm(channels),
            nn.Linear(channels, self.hidden_size),
            nn.GELU(),
            nn.Linear(self.hidden_size, self.hidden_size),
        )
        self.cells = nn.Parameter(_grid_positions(rows, columns, self.hidden_size) * 0.2)

    @property
    def vocab_size(self) -> int:
        return int(self.language.config.vocab_size)

    def parts(self) -> dict[str, nn.Module]:
        return {"vision": self.vision, "connector": self.connector, "language": self.language}

    def add_rows(self, count: int) -> None:
        self.language.resize_token_embeddings(self.vocab_size + count, mean_resizing=False)
        self.config["language"]["vocab_size"] = self.vocab_size

    def see(
        self, pixel_values: Float[Tensor, "b k 3 h w"], image_mask: Bool[Tensor, "b k"]
    ) -> Float[Tensor, "n t d"] | None:
        """The tokens of each image; None where there is none."""
        if not image_mask.any():
            return None
        features = self._features(pixel_values[image_mask]).flatten(2).transpose(1, 2)
        return self.connector(features) + self.cells

    def embed(
        self, input_ids: Int[Tensor, "b l"], vision: Float[Tensor, "n t d"] | None = None
    ) -> Float[Tensor, "b l d"]:
        embeds = self.embed_tokens(input_ids)
        if vision is None:
            return embeds
        places = (input_ids == self.image_token_id).unsqueeze(-1)
        return embeds.masked_scatter(places, vision.to(embeds.dtype))

    def embed_tokens(self, input_ids: Int[Tensor, "b l"]) -> Float[Tensor, "b l d"]:
        embeds: Tensor = self.language.get_input_embeddings()(input_ids)
        return embeds

    def hidden(
        self,
        embeds: Float[Tensor, "b l d"],
        attention_mask: Bool[Tensor, "b m"],
        cache: Any | None = None,
        vision: Any | None = None,
        segments: Int[Tensor, "b l"] | None = None,
    ) -> tuple[Float[Tensor, "b l d"], Any]:
        """See `Backbone.hidden`."""
        order = order_of(attention_mask)
        mask, positions = mask_and_positions(attention_mask, order, segments, embeds.shape[1], embeds.dtype)
        out = self.language.model(
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=positions[:, -embeds.shape[1] :],
            past_key_values=cache,
            use_cache=cache is not None,
        )
        return out.last_hidden_state, out.past_key_values

    def new_cache(self) -> DynamicCache:
        return DynamicCache(config=self.language.config)

    def crop(self, cache: DynamicCache, length: int) -> None:
        cache.crop(length)

    def fork(self, cache: DynamicCache, copies: int) -> None:
        cache.batch_repeat_interleave(copies)

    def logits(self, hidden: Float[Tensor, "*b d"]) -> Float[Tensor, "*b v"]:
        return self.language.lm_head(hidden)

    def _features(self, pixels: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n c g g"]:
        return self.vision(pixels).feature_maps[-1]


def _grid_positions(rows: int, columns: int, size: int) -> Float[Tensor, "n d"]:
    """Sines and cosines of the row and of the column, a quarter of `size` each, in random mixture.

    A start at the scale of the features, with neighbours alike: places are what the model must learn to name.
    """
    frequencies = torch.pi * torch.arange(1, size // 4 + 1) ** 0.5
    y, x = torch.meshgrid(torch.linspace(0, 1, rows), torch.linspace(0, 1, columns), indexing="ij")
    angles = [axis.reshape(-1, 1) * frequencies for axis in (y, x)]
    waves = torch.cat([f(a) for a in angles for f in (torch.sin, torch.cos)], 1)
    return waves @ torch.randn(waves.shape[1], size) * (2 / waves.shape[1]) ** 0.5


def _config(values: Config) -> Any:
    rest = {k: v for k, v in values.items() if k != "model_type"}
    return AutoConfig.for_model(values["model_type"], **rest)
