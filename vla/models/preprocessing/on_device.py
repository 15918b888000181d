"""Images that are resized in float32 on the device of the model, and the normalisation of pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from vla.common.images import fitted_down
from vla.models.preprocessing.view import Piece, Sides, View


@dataclass(frozen=True)
class OnDevice:
    """The image keeps its size in the batch; the model fits it into the frame, with its aspect ratio and black bars.

    Bilinear without antialiasing and without rounding to bytes, and with sides rounded down, as LeRobot's policies.

    Attributes:
        size: height and width of the frame [pixels].
        centred: bars on both sides of the image (pi0), else on the left or at the top (SmolVLA).
    """

    kind: ClassVar[str] = "on-device"
    size: Sides
    centred: bool = True
    resample: str = "bilinear"

    def view(self, height: int, width: int) -> View:
        """See `Framing.view`."""
        return View((Piece((height, width), ((height, width),)),), self.resample)

    def place(self, height: int, width: int) -> tuple[int, int, int, int]:
        """Left, top, width and height [pixels] in the frame, of an image of this height and width."""
        tall, wide = fitted_down(height, width, self.size)
        left, top = self.size[1] - wide, self.size[0] - tall
        return (left // 2, top // 2, wide, tall) if self.centred else (left, top, wide, tall)


def normalized(
    images: UInt8[Tensor, "*b h w 3"], mean: Sequence[float], std: Sequence[float]
) -> Float[Tensor, "*b 3 h w"]:
    """(x / 255 - mean) / std per channel, channels first, on the device of the images."""
    channels_first = images.movedim(-1, -3)
    means, stds = (torch.tensor(values, device=images.device)[:, None, None] for values in (mean, std))
    out = torch.empty(channels_first.shape, device=images.device)
    # On a CPU, one image at a time makes better use of the CPU caches.
    shape = (-1, *out.shape[-3:]) if images.device.type == "cpu" else (1, *out.shape)
    for target, image in zip(out.view(shape), channels_first.reshape(shape), strict=True):
        target.copy_(image).mul_(1 / 255 / stds).sub_(means / stds)
    return out


def resized(
    images: UInt8[Tensor, "b k h w 3"],
    masks: tuple[Bool[Tensor, "b k"], Bool[Tensor, "b k"]],
    content: Int[Tensor, "b k 4"],
    framing: OnDevice,
    mean: Sequence[float],
    std: Sequence[float],
) -> tuple[Float[Tensor, "b k 3 _h _w"], Int[Tensor, "b k 4"]]:
    """The normalised frames of a batch, and the places of the images in them.

    Args:
        images, content: of the batch.
        masks: images that are resized here, those of robots, and frames that have their size already.
        framing: how images are placed.
        mean, std: of pixels, per channel.
    """
    tall, wide = framing.size
    black = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=images.device)
    frames = black[:, None, None].expand(*content.shape[:2], 3, tall, wide).clone()
    placed, (unplaced, ready) = content.clone(), masks
    if ready.any():
        frames[ready] = normalized(images[ready][:, :tall, :wide], mean, std)
    for *_, width, height in content[unplaced].unique(dim=0).tolist():
        chosen = unplaced & (content == content.new_tensor([0, 0, width, height])).all(-1)
        pixels = images[chosen][:, :height, :width].movedim(-1, -3).float() / 255
        left, top, new_width, new_height = framing.place(height, width)
        if (new_height, new_width) != (height, width):
            pixels = F.interpolate(pixels, size=(new_height, new_width), mode="bilinear", align_corners=False)
        means, stds = (torch.tensor(values, device=pixels.device)[:, None, None] for values in (mean, std))
        frames[..., top : top + new_height, left : left + new_width][chosen] = (pixels - means) / stds
        placed[chosen] = content.new_tensor([left, top, new_width, new_height])
    return frames, placed
