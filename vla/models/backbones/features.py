"""What a vision encoder of transformers sees, as a map: the input of a connector."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from vla.common.images import sides

PENULTIMATE = ("clip", "clip_vision_model")
"""Families whose last layer serves their class token only; LLaVA reads the one before."""


def feature_map(
    encoder: nn.Module, pixel_values: Float[Tensor, "n 3 h w"], layer: int | None = None
) -> Float[Tensor, "n c gh gw"]:
    """The features of each patch, without class and register tokens.

    `encoder` is CLIP's, SigLIP's or ALIGN's vision model, or another of transformers (ViT, DINOv2, ConvNeXt): alone,
    or as the part of a dual encoder. h and w are multiples of its patch size; positions are interpolated where they
    are not of its own size. `layer` is the hidden state to read, by default where the family is best read.
    """
    config: Any = encoder.config
    if layer is None and config.model_type in PENULTIMATE:
        layer = -2
    if config.model_type.startswith("siglip2"):
        out = encoder(*patches(pixel_values, config.patch_size), output_hidden_states=layer is not None)
    else:
        own = getattr(config, "image_size", None)
        native = own is None or sides(own) == tuple(pixel_values.shape[2:])
        told = "interpolate_pos_encoding" in inspect.signature(encoder.forward).parameters
        sizes = {"interpolate_pos_encoding": True} if told and not native else {}
        out = encoder(pixel_values=pixel_values, output_hidden_states=layer is not None, **sizes)
    found: Tensor = out.last_hidden_state if layer is None else out.hidden_states[layer]
    if found.ndim == 4:
        return found
    rows, columns = pixel_values.shape[2] // config.patch_size, pixel_values.shape[3] // config.patch_size
    return found[:, -rows * columns :].transpose(1, 2).unflatten(2, (rows, columns))


def patches(
    pixel_values: Float[Tensor, "n 3 h w"], size: int
) -> tuple[Float[Tensor, "n p v"], Int[Tensor, "n p"], Int[Tensor, "n 2"]]:
    """What SigLIP 2 at native resolution takes: patches row by row, their mask, and the rows and columns of each."""
    n, channels, height, width = pixel_values.shape
    rows, columns = height // size, width // size
    cut = pixel_values.reshape(n, channels, rows, size, columns, size).permute(0, 2, 4, 3, 5, 1)
    device = pixel_values.device
    mask = torch.ones(n, rows * columns, dtype=torch.long, device=device)
    return cut.reshape(n, rows * columns, -1), mask, torch.tensor([[rows, columns]] * n, device=device)
