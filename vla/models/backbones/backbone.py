"""The interface that a vision-language model must provide for an action head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vla.common.images import Size


@dataclass(frozen=True)
class ImageLayout:
    """Layout of each frame of a batch (`vla.models.preprocessing`).

    Attributes:
        content: left, top, width and height [pixels] of the frame's image.
        tiling: index of the image in its row, and the number of rows and columns of frames that it was cut into.
    """

    content: Int[Tensor, "b k 4"]
    tiling: Int[Tensor, "b k 3"]


@runtime_checkable
class Backbone(Protocol):
    """A vision-language model: images and text to hidden states and next-token logits. It is an `nn.Module`.

    In `input_ids` each image is copies of `image_token_id`, `tokens_per_image` of them for an image of `image_size`,
    with the tokens that the family writes around or between them (`<|vision_start|>`, `[IMG_BREAK]`).
    Shapes: b rows, k frames per row, l new tokens, m tokens including cached ones, d hidden size, v vocabulary size.
    """

    config: dict[str, Any]
    """JSON with the name of the "family", from which `vla.models.backbones.build.build` makes the same module with
    random weights."""
    hidden_size: int
    tokens_per_image: int
    image_token_id: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def image_size(self) -> Size:
        """Side of square images, or height and width [pixels]."""
        ...

    @property
    def vocab_size(self) -> int:
        """Number of token embeddings, including unused ones."""
        ...

    def encode_images(
        self,
        pixel_values: Float[Tensor, "b k 3 h w"],
        image_mask: Bool[Tensor, "b k"],
        layout: ImageLayout | None = None,
    ) -> Any:
        """Encodes the frames whose mask is True, in the form that `embed` and `forward` of this family need.

        Without a `layout` each frame is a separate image that fills it.
        """
        ...

    def embed(self, input_ids: Int[Tensor, "b l"], vision: Any | None) -> Float[Tensor, "b l d"]:
        """Token embeddings, with the image features at the image tokens, in order.

        A family whose positions or attention depend on the image tokens records these in `vision`.
        """
        ...

    def embed_tokens(self, input_ids: Int[Tensor, "b l"]) -> Float[Tensor, "b l d"]:
        """Token embeddings of text without images."""
        ...

    def forward(
        self,
        embeds: Float[Tensor, "b l d"],
        attention_mask: Bool[Tensor, "b m"],
        cache: Any | None = None,
        vision: Any | None = None,
        segments: Int[Tensor, "b l"] | None = None,
    ) -> tuple[Float[Tensor, "b l d"], Any]:
        """The last hidden states of the new tokens, and the updated cache.

        A token of segment n > 0 attends to, and continues the positions of, the tokens of segment 0 and its own
        segment only. Tokens of segment `masks.TOGETHER` attend to each other and to all earlier tokens.

        Args:
            attention_mask: valid tokens, including the m - l cached ones.
            vision: the value passed to `embed`.
            segments: segment of each token. After a cache only `masks.TOGETHER` is possible. In a prefix-LM
                (PaliGemma) segment 0 has bidirectional attention, so predicted tokens need another segment.

        Raises:
            InputError: where a family does not support segments, and in a prefix-LM without segments and cache.
        """
        ...

    def next_position(self, attention_mask: Bool[Tensor, "b m"], cache: Any | None = None) -> Int[Tensor, "b"]:
        """Position of the token after the m tokens of `attention_mask`, which are the first in `cache`."""
        ...

    def logits(self, hidden: Float[Tensor, "*b d"]) -> Float[Tensor, "*b v"]:
        """Next-token logits of hidden states."""
        ...

    def new_cache(self) -> Any:
        """An empty KV cache."""
        ...

    def crop(self, cache: Any, length: int) -> Any:
        """Truncates a cache to its first `length` tokens, in place, and returns it."""
        ...

    def fork(self, cache: Any, copies: int) -> Any:
        """A copy of a cache with each row repeated `copies` times."""
        ...

    def add_token_embeddings(self, count: int) -> None:
        """Appends exactly `count` tokens to the vocabulary."""
        ...

    def vocab_weights(self) -> tuple[Float[Tensor, "_r d"], Float[Tensor, "_r d"]]:
        """Weights of the embedding and of the output layer; their last rows are the vocabulary's last tokens."""
        ...

    def freezable_modules(self) -> dict[str, nn.Module]:
        """The modules that a training stage can freeze: vision, connector, language."""
        ...
