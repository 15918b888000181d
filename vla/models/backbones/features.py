"""Feature maps of vision encoders of transformers, the input of a connector."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vla.common.images import sides

PENULTIMATE = ("clip", "clip_vision_model")
"""Families whose last layer only serves the class token; LLaVA reads the layer before it."""


def feature_map(
    encoder: nn.Module, pixel_values: Float[Tensor, "n 3 h w"], layer: int | None = None
) -> Float[Tensor, "n c gh gw"]:
    """The features of each patch, without class and register tokens.

    Position embeddings are interpolated for images of another size than in the encoder's training.

    Args:
        encoder: vision model of CLIP, SigLIP or ALIGN, or another one of transformers (ViT, DINOv2, ConvNeXt).
        pixel_values: h and w are multiples of the patch size.
        layer: index of the hidden state to read; by default the family's best.
    """
    config: Any = encoder.config
    if layer is None and config.model_type in PENULTIMATE:
        layer = -2
    if config.model_type.startswith("siglip2"):
        out = encoder(*patches(pixel_values, config.patch_size), output_hidden_states=layer is not None)
    else:
        size = getattr(config, "image_size", None)
        native = size is None or sides(size) == tuple(pixel_values.shape[2:])
        can_interpolate = "interpolate_pos_encoding" in inspect.signature(encoder.forward).parameters
        sizes = {"interpolate_pos_encoding": True} if can_interpolate and not native else {}
        out = encoder(pixel_values=pixel_values, output_hidden_states=layer is not None, **sizes)
    found: Tensor = out.last_hidden_state if layer is None else out.hidden_states[layer]
    if found.ndim == 4:
        return found
    rows, columns = pixel_values.shape[2] // config.patch_size, pixel_values.shape[3] // config.patch_size
    return found[:, -rows * columns :].transpose(1, 2).unflatten(2, (rows, columns))


def patches(
    pixel_values: Float[Tensor, "n 3 h w"], size: int
) -> tuple[Float[Tensor, "n p v"], Int[Tensor, "n p"], Int[Tensor, "n 2"]]:
    """Inputs of SigLIP 2 at native resolution: patches in row-major order, their mask, and the grid of each image."""
    n, channels, height, width = pixel_values.shape
    rows, columns = height // size, width // size
    cut = pixel_values.reshape(n, channels, rows, size, columns, size).permute(0, 2, 4, 3, 5, 1)
    device = pixel_values.device
    mask = torch.ones(n, rows * columns, dtype=torch.long, device=device)
    return cut.reshape(n, rows * columns, -1), mask, torch.tensor([[rows, columns]] * n, device=device)
