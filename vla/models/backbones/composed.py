"""A backbone composed of a vision encoder, a connector and a causal language model (LLaVA, InternVL, BLIP-2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from vla.common.images import Size
from vla.models.backbone_inputs import ImageInput
from vla.models.backbones.cache import ImageTokenCache, Vision
from vla.models.backbones.connectors import build_connector
from vla.models.backbones.language_backbone import BackboneOfParts, Config

MLP: Config = {"kind": "mlp", "norm": True}


class ComposedVLM(BackboneOfParts):
    """Any vision encoder of transformers, any connector, and any causal LM of transformers.

    Learned position embeddings are added to the tokens of a feature map (ConvNeXt, Swin), since a convolutional encoder
    has none, if the connector has one token per cell.

    Args:
        connector: a "kind" of `connectors.KINDS` with its options.
        vision, language, image_size, image_token_id, attention, mean, std: as in `BackboneOfParts`.
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
        super().__init__("composed", vision, language, image_size, image_token_id, mean, std, attention)
        self.config["connector"] = dict(connector)
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

    def freezable_modules(self) -> dict[str, nn.Module]:
        """See `Backbone.freezable_modules`."""
        return {"vision": self.vision.model, "connector": self.connector, "language": self.language}

    def encode_images(self, images: ImageInput) -> Vision:
        """See `Backbone.encode_images`."""
        features = self.image_features(images.frames)
        return Vision(features, len(features))

    def image_features(self, pixels: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "t d"]:
        """The tokens of all images."""
        tokens: Tensor = self.connector(self.vision(pixels).flatten(1, 2))
        cells: Any = self.connector.cells
        return (tokens if cells is None else tokens + cells).flatten(0, 1)

    def new_cache(self) -> ImageTokenCache:
        """See `Backbone.new_cache`."""
        return ImageTokenCache(config=self.language.config)


def _grid_positions(rows: int, columns: int, size: int) -> Float[Tensor, "n d"]:
    """Initial position embeddings: random mixtures of sines and cosines of row and column, `size` / 4 of each.

    Neighbouring cells have similar embeddings, at the scale of the features.
    """
    frequencies = torch.pi * torch.arange(1, size // 4 + 1) ** 0.5
    y, x = torch.meshgrid(torch.linspace(0, 1, rows), torch.linspace(0, 1, columns), indexing="ij")
    angles = [axis.reshape(-1, 1) * frequencies for axis in (y, x)]
    waves = torch.cat([f(a) for a in angles for f in (torch.sin, torch.cos)], 1)
    return waves @ torch.randn(waves.shape[1], size) * (2 / waves.shape[1]) ** 0.5


def _cells_of_the_connector(module: nn.Module, weights: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Loads weights of earlier versions, whose positions were not in the connector."""
    if f"{prefix}cells" in weights:
        weights[f"{prefix}connector.cells"] = weights.pop(f"{prefix}cells")
