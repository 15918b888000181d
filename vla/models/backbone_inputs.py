"""The inputs of a backbone: the images of a batch, and the tokens that its language model processes.

Shapes: b rows, k frames per row, l new tokens, m tokens including cached ones, d hidden size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class ImageInput:
    """The frames of a batch (`vla.models.preprocessing`), of which at least one is valid.

    Attributes:
        mask: valid frames.
        content: left, top, width and height [pixels] of the image in each frame; by default it fills the frame.
        tiling: index of the image in its row, and the number of rows and columns of frames that it was cut into; by
            default each frame is a separate image.
    """

    pixel_values: Float[Tensor, "b k 3 h w"]
    mask: Bool[Tensor, "b k"]
    content: Int[Tensor, "b k 4"] | None = None
    tiling: Int[Tensor, "b k 3"] | None = None

    @property
    def frames(self) -> Float[Tensor, "n 3 h w"]:
        """The pixels of the valid frames, row by row."""
        return self.pixel_values[self.mask]


@dataclass(frozen=True)
class DecoderInput:
    """New tokens and the cache of the tokens before them.

    A token of segment n > 0 attends to, and continues the positions of, the tokens of segment 0 and its own segment
    only. Tokens of segment `masks.TOGETHER` attend to each other and to all earlier tokens.

    Attributes:
        attention_mask: valid tokens, including the m - l cached ones.
        cache: from `Backbone.new_cache` or an earlier call; None to cache nothing.
        vision: the value passed to `Backbone.embed`.
        segments: segment of each token. After a cache only `masks.TOGETHER` is possible. In a prefix-LM (PaliGemma)
            segment 0 has bidirectional attention, so predicted tokens need another segment.
    """

    embeds: Float[Tensor, "b l d"]
    attention_mask: Bool[Tensor, "b m"]
    cache: Any = None
    vision: Any = None
    segments: Int[Tensor, "b l"] | None = None

    @property
    def length(self) -> int:
        """Number of new tokens."""
        return self.embeds.shape[1]

    @property
    def continues(self) -> bool:
        """Whether there are cached tokens before the new ones."""
        return self.attention_mask.shape[1] > self.length
