"""Image augmentation in training: what is varied and how far, and the photometric part.

| options                          | images                           | drawn per                          |
|----------------------------------|----------------------------------|------------------------------------|
| brightness, contrast, saturation | all, of questions too            | row and image                      |
| noise, blur                      | all, of questions too            | row and image                      |
| cutout                           | of robots                        | row and image                      |
| crop, shift, scale, rotation,    | of robots, of the chosen cameras | row and camera (`training.geometry`) |
| perspective                      |                                  |                                    |

Hue stays: colour words name objects. Everything is drawn from the row's own seed, so a run resumes to the bit,
whichever rank or worker makes the row. Evaluation and deployment never augment.
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
    """How far brightness, contrast and saturation of each image change; drawn from the row's seed alone."""
    drawn = np.stack([np.random.default_rng(seed).random((images, 3), np.float32) for seed in seeds.tolist()])
    reach = np.array([augmentation.brightness, augmentation.contrast, augmentation.saturation], np.float32)
    return torch.from_numpy((2 * drawn - 1) * reach)


def change_light(pixels: Float[Tensor, "b k 3 h w"], jitter: Float[Tensor, "b k 3"]) -> Float[Tensor, "b k 3 h w"]:
    """Changes each image's brightness, contrast and saturation by its `jitter`: a fraction, 0 for none.

    Works on normalised pixels.
    """
    brightness, contrast, saturation = (jitter[:, :, i, None, None, None] for i in range(3))
    grey = pixels.mean(2, keepdim=True)
    out = grey + (pixels - grey) * (1 + saturation)
    level = out.mean((2, 3, 4), keepdim=True)
    return level + (out - level) * (1 + contrast) + brightness


def augment(
    pixels: Float[Tensor, "b k 3 h w"], batch: Batch, seeds: Int[Tensor, "b"], augmentation: Augmentation
) -> Float[Tensor, "b k 3 h w"]:
    """The normalised `pixels` of a batch as the model is to see them in training; on the device where they are.

    First geometry (`Batch.warp`), then cutout, blur, light and noise: the order in which a camera adds them.
    `seeds` are the batch's, on the CPU: a copy from the device would wait for what it computes.
    """
    if augmentation.geometric:
        pixels = warp(pixels, batch.warp, batch.content)
    if augmentation.cutout:
        robots = (batch.robot >= 0)[:, None] & batch.image_mask
        pixels = _cut_out(pixels, _draws(seeds, pixels, 1, 4), augmentation.cutout, robots)
    if augmentation.blur:
        pixels = _blur(pixels, _draws(seeds, pixels, 2, 1)[:, :, 0] * augmentation.blur, augmentation.blur)
    if augmentation.brightness or augmentation.contrast or augmentation.saturation:
        pixels = change_light(pixels, jitter(seeds, pixels.shape[1], augmentation).to(pixels.device))
    if augmentation.noise:
        reach = _draws(seeds, pixels, 3, 1)[..., None, None] * augmentation.noise
        pixels = pixels + reach * _noise(seeds, pixels)
    return pixels


def _draws(
    seeds: Int[Tensor, "b"], pixels: Float[Tensor, "b k 3 h w"], what: int, count: int
) -> Float[Tensor, "b k n"]:
    """Uniform numbers in [0, 1) for each image, of their own for each of what is varied."""
    shape = (pixels.shape[1], count)
    drawn = [np.random.default_rng([seed, what]).random(shape, np.float32) for seed in seeds.tolist()]
    return torch.from_numpy(np.stack(drawn)).to(pixels.device)


def _cut_out(
    pixels: Float[Tensor, "b k 3 h w"], drawn: Float[Tensor, "b k 4"], reach: float, chosen: Bool[Tensor, "b k"]
) -> Float[Tensor, "b k 3 h w"]:
    """Fills a rectangle of each chosen image with its mean colour, so that no edge is stronger than the scene's."""
    spans = []
    for axis, side in ((0, pixels.shape[-1]), (1, pixels.shape[-2])):
        length = drawn[:, :, axis, None] * reach
        start = drawn[:, :, 2 + axis, None] * (1 - length)
        at = (torch.arange(side, device=pixels.device) + 0.5) / side
        spans.append((at >= start) & (at < start + length))
    inside = (spans[1][..., :, None] & spans[0][..., None, :])[:, :, None] & chosen[:, :, None, None, None]
    return torch.where(inside, pixels.mean((-1, -2), keepdim=True), pixels)


def _blur(pixels: Float[Tensor, "b k 3 h w"], sigma: Float[Tensor, "b k"], most: float) -> Float[Tensor, "b k 3 h w"]:
    from kornia.filters import gaussian_blur2d

    width = 2 * min(math.ceil(3 * most), (min(pixels.shape[-2:]) - 1) // 2) + 1
    both = sigma.flatten().clamp(min=1e-3)[:, None].expand(-1, 2)
    blurred = gaussian_blur2d(pixels.flatten(0, 1), (width, width), both, border_type="replicate")
    return blurred.unflatten(0, pixels.shape[:2])


def _noise(seeds: Int[Tensor, "b"], pixels: Float[Tensor, "b k 3 h w"]) -> Float[Tensor, "b k 3 h w"]:
    """Of each image its own, whatever else is in the batch."""
    noise, generator = torch.empty_like(pixels), torch.Generator(pixels.device)
    for row, seed in zip(noise, seeds.tolist(), strict=True):
        for index, image in enumerate(row):
            generator.manual_seed((seed + index) % 2**63)
            image.normal_(generator=generator)
    return noise
