"""Photometric image augmentation in training.

| options                          | applied to                       | sampled per                        |
|----------------------------------|----------------------------------|------------------------------------|
| brightness, contrast, saturation | all images                       | row and image                      |
| noise, blur                      | all images                       | row and image                      |
| cutout                           | robot images                     | row and image                      |
| crop, shift, scale, rotation,    | robot images of selected cameras | row and camera (`training.geometry`) |
| perspective                      |                                  |                                    |

Hue is not varied, because colour words name objects. All random numbers come from the seed of the row, so a resumed run
is bit-identical, whichever rank or worker makes the row. Evaluation and deployment do not augment.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from vla.models.batch import Batch
from vla.training.augmentation import Augmentation
from vla.training.geometry import warp


def jitter(seeds: Int[Tensor, "b"], images: int, augmentation: Augmentation) -> Float[Tensor, "b k 3"]:
    """Samples the change of brightness, contrast and saturation of each image from the row's seed."""
    samples = np.stack([np.random.default_rng(seed).random((images, 3), np.float32) for seed in seeds.tolist()])
    limits = np.array([augmentation.brightness, augmentation.contrast, augmentation.saturation], np.float32)
    return torch.from_numpy((2 * samples - 1) * limits)


def change_light(pixels: Float[Tensor, "b k 3 h w"], jitter: Float[Tensor, "b k 3"]) -> Float[Tensor, "b k 3 h w"]:
    """Changes brightness, contrast and saturation of normalised pixels by `jitter` (fractions; 0 is no change)."""
    brightness, contrast, saturation = (jitter[:, :, i, None, None, None] for i in range(3))
    grey = pixels.mean(2, keepdim=True)
    out = grey + (pixels - grey) * (1 + saturation)
    level = out.mean((2, 3, 4), keepdim=True)
    return level + (out - level) * (1 + contrast) + brightness


def augment(
    pixels: Float[Tensor, "b k 3 h w"], batch: Batch, seeds: Int[Tensor, "b"], augmentation: Augmentation
) -> Float[Tensor, "b k 3 h w"]:
    """Augments the normalised `pixels` of a batch on their device.

    The order is that of a camera: geometry (`Batch.warp`), cutout, blur, brightness and colour, noise.

    Args:
        pixels: Normalised pixels.
        batch: The batch of the pixels.
        seeds: The seeds of the rows, on the CPU; a copy from the device would synchronise with it.
        augmentation: The augmentation strengths.
    """
    if augmentation.geometric:
        pixels = warp(pixels, batch.warp, batch.content)
    if augmentation.cutout:
        robots = (batch.robot >= 0)[:, None] & batch.image_mask
        pixels = _cut_out(pixels, _uniform(seeds, pixels, 1, 4), augmentation.cutout, robots)
    if augmentation.blur:
        pixels = _blur(pixels, _uniform(seeds, pixels, 2, 1)[:, :, 0] * augmentation.blur, augmentation.blur)
    if augmentation.brightness or augmentation.contrast or augmentation.saturation:
        pixels = change_light(pixels, jitter(seeds, pixels.shape[1], augmentation).to(pixels.device))
    if augmentation.noise:
        deviation = _uniform(seeds, pixels, 3, 1)[..., None, None] * augmentation.noise
        pixels = pixels + deviation * _noise(seeds, pixels)
    return pixels


def _uniform(
    seeds: Int[Tensor, "b"], pixels: Float[Tensor, "b k 3 h w"], stream: int, count: int
) -> Float[Tensor, "b k n"]:
    """Uniform random numbers in [0, 1) for each image, independent between streams."""
    shape = (pixels.shape[1], count)
    samples = [np.random.default_rng([seed, stream]).random(shape, np.float32) for seed in seeds.tolist()]
    return torch.from_numpy(np.stack(samples)).to(pixels.device)


def _cut_out(
    pixels: Float[Tensor, "b k 3 h w"], samples: Float[Tensor, "b k 4"], limit: float, selected: Bool[Tensor, "b k"]
) -> Float[Tensor, "b k 3 h w"]:
    """Fills a rectangle of each selected image with its mean colour, which adds no edge stronger than the scene's."""
    spans = []
    for axis, side in ((0, pixels.shape[-1]), (1, pixels.shape[-2])):
        length = samples[:, :, axis, None] * limit
        start = samples[:, :, 2 + axis, None] * (1 - length)
        centers = (torch.arange(side, device=pixels.device) + 0.5) / side
        spans.append((centers >= start) & (centers < start + length))
    inside = (spans[1][..., :, None] & spans[0][..., None, :])[:, :, None] & selected[:, :, None, None, None]
    return torch.where(inside, pixels.mean((-1, -2), keepdim=True), pixels)


def _blur(pixels: Float[Tensor, "b k 3 h w"], sigma: Float[Tensor, "b k"], limit: float) -> Float[Tensor, "b k 3 h w"]:
    from kornia.filters import gaussian_blur2d

    width = 2 * min(math.ceil(3 * limit), (min(pixels.shape[-2:]) - 1) // 2) + 1
    both = sigma.flatten().clamp(min=1e-3)[:, None].expand(-1, 2)
    blurred = gaussian_blur2d(pixels.flatten(0, 1), (width, width), both, border_type="replicate")
    return blurred.unflatten(0, pixels.shape[:2])


def _noise(seeds: Int[Tensor, "b"], pixels: Float[Tensor, "b k 3 h w"]) -> Float[Tensor, "b k 3 h w"]:
    """Gaussian noise, seeded per image, so that it does not depend on the rest of the batch."""
    noise, generator = torch.empty_like(pixels), torch.Generator(pixels.device)
    for row, seed in zip(noise, seeds.tolist(), strict=True):
        for index, image in enumerate(row):
            generator.manual_seed((seed + index) % 2**63)
            image.normal_(generator=generator)
    return noise
