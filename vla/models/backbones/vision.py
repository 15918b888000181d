"""Any vision encoder of transformers, as a map of features."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoBackbone, AutoConfig, AutoModel

from vla.common.images import Size, sides
from vla.errors import InputError
from vla.models.backbones.features import feature_map


class VisionEncoder(nn.Module):
    """The encoder of a configuration, with random weights, or the given one.

    A configuration with `out_features` is a backbone with a feature map (ConvNeXt, Swin, DINOv2 ...); any other is a
    model with patch tokens (CLIPVisionModel, SiglipVisionModel, Dinov2Model ...), read at `layer` of its hidden
    states, or where its family is best read. Raises InputError for a model_type that transformers does not know.
    """

    def __init__(self, config: Mapping[str, Any], model: nn.Module | None = None) -> None:
        super().__init__()
        values = dict(config)
        self.layer: int | None = values.pop("layer", None)
        self.maps = "out_features" in values or "out_indices" in values
        if model is None:
            made: Any = AutoBackbone if self.maps else AutoModel
            try:
                model = made.from_config(AutoConfig.for_model(values.pop("model_type"), **values))
            except (KeyError, ValueError) as error:
                raise InputError(f"no vision encoder of transformers is made of {dict(config)}: {error}") from error
        self.model: Any = model
        self.register_load_state_dict_pre_hook(_named_as_in_transformers)

    @property
    def width(self) -> int:
        return int(self.model.channels[-1] if self.maps else self.model.config.hidden_size)

    def grid(self, image_size: Size) -> tuple[int, int]:
        """Rows and columns of features of an image.

        Raises InputError for a size that the encoder cannot take: it has places for its own alone, or patches that
        do not divide it.
        """
        parameter = next(self.parameters())
        with torch.no_grad():
            blank = torch.zeros(1, 3, *sides(image_size), device=parameter.device, dtype=parameter.dtype)
            try:
                rows, columns = self(blank).shape[1:3]
            except (RuntimeError, ValueError) as error:
                kind = type(self.model).__name__
                raise InputError(f"{kind} cannot see images of {sides(image_size)} pixels: {error}") from error
        return rows, columns

    def forward(self, pixel_values: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n r k c"]:
        """Features (n, rows, columns, c), without class and register tokens."""
        if self.maps:
            found: Tensor = self.model(pixel_values).feature_maps[-1]
        else:
            found = feature_map(self.model, pixel_values, self.layer)
        return found.permute(0, 2, 3, 1)


def build_vision(config: Mapping[str, Any]) -> VisionEncoder:
    return VisionEncoder(config)


def _named_as_in_transformers(module: nn.Module, weights: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Weights that lack the "model." of this wrapper load too: of the encoder itself, and of earlier versions."""
    for name in [n for n in weights if n.startswith(prefix) and not n.startswith(f"{prefix}model.")]:
        weights[f"{prefix}model.{name.removeprefix(prefix)}"] = weights.pop(name)
