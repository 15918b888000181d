"""Any vision encoder of transformers, with a feature map as output."""

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
    """A vision encoder of transformers.

    Args:
        config: transformers configuration as a dict with `model_type`. With `out_features` it is a backbone with a
            feature map (ConvNeXt, Swin, DINOv2 ...); otherwise a model with patch tokens (CLIPVisionModel,
            SiglipVisionModel, Dinov2Model ...), read at the hidden state `layer`, by default the family's best.
        model: the encoder; by default a new one with random weights.

    Raises:
        InputError: for a model_type that transformers does not have.
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
                raise InputError(f"{dict(config)} is not a vision encoder of transformers: {error}") from error
        self.model: Any = model
        self.register_load_state_dict_pre_hook(_named_as_in_transformers)

    @property
    def width(self) -> int:
        """Number of channels of the features."""
        return int(self.model.channels[-1] if self.maps else self.model.config.hidden_size)

    def grid(self, image_size: Size) -> tuple[int, int]:
        """Rows and columns of features of an image.

        Raises:
            InputError: for a size that the encoder does not support: its positions are for another size, or the size
                is not divisible by its patches.
        """
        parameter = next(self.parameters())
        with torch.no_grad():
            image = torch.zeros(1, 3, *sides(image_size), device=parameter.device, dtype=parameter.dtype)
            try:
                rows, columns = self(image).shape[1:3]
            except (RuntimeError, ValueError) as error:
                kind = type(self.model).__name__
                raise InputError(f"{kind} does not take images of {sides(image_size)} pixels: {error}") from error
        return rows, columns

    def forward(self, pixel_values: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n r k c"]:
        """Features (n, rows, columns, c), without class and register tokens."""
        if self.maps:
            found: Tensor = self.model(pixel_values).feature_maps[-1]
        else:
            found = feature_map(self.model, pixel_values, self.layer)
        return found.permute(0, 2, 3, 1)


def _named_as_in_transformers(module: nn.Module, weights: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Also loads weights without this wrapper's "model." prefix: of the encoder itself, and of earlier versions."""
    for name in [n for n in weights if n.startswith(prefix) and not n.startswith(f"{prefix}model.")]:
        weights[f"{prefix}model.{name.removeprefix(prefix)}"] = weights.pop(name)
