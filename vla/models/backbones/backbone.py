"""What a vision-language model must offer to carry an action head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vla.common.images import Size


@dataclass(frozen=True)
class ImageLayout:
    """Of each frame of a batch: the part of it that shows its image (left, top, width, height [pixels]), and which of
    its row's images it is of, which was cut in how many rows and columns of frames (`vla.models.preprocessing`)."""

    content: Int[Tensor, "b k 4"]
    tiling: Int[Tensor, "b k 3"]


@runtime_checkable
class Backbone(Protocol):
    """Images and text in, hidden states and next-token logits out; an `nn.Module`.

    In `input_ids` each image of a row stands as copies of `image_token_id`, `tokens_per_image` of them where it is of
    `image_size`, and what the family writes around or between them (`<|vision_start|>`, `[IMG_BREAK]`).
    Shapes: b rows, k frames a row, l tokens, m tokens with those cached, d hidden size, v rows of the vocabulary.
    """

    config: dict[str, Any]
    """JSON, with the name of the "family": `vla.models.backbones.build.build` makes the same module of it, with random
    weights."""
    hidden_size: int
    tokens_per_image: int
    image_token_id: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def image_size(self) -> Size:
        """The side of the images where they are square, or their height and width [pixels]."""
        ...

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding, spare ones included."""
        ...

    def encode_images(
        self,
        pixel_values: Float[Tensor, "b k 3 h w"],
        image_mask: Bool[Tensor, "b k"],
        layout: ImageLayout | None = None,
    ) -> Any:
        """Features of the frames whose mask is True: what `embed` and `forward` of this family need.

        Without a `layout` each frame is an image of its own, which fills it.
        """
        ...

    def embed(self, input_ids: Int[Tensor, "b l"], vision: Any | None) -> Float[Tensor, "b l d"]:
        """Token embeddings, with the features of the images at their placeholders, in order.

        A family whose positions or attention depend on where the images are notes it in `vision`.
        """
        ...

    def embed_tokens(self, input_ids: Int[Tensor, "b l"]) -> Float[Tensor, "b l d"]: ...

    def forward(
        self,
        embeds: Float[Tensor, "b l d"],
        attention_mask: Bool[Tensor, "b m"],
        cache: Any | None = None,
        vision: Any | None = None,
        segments: Int[Tensor, "b l"] | None = None,
    ) -> tuple[Float[Tensor, "b l d"], Any]:
        """Last hidden states. With a cache of m - l earlier tokens, `attention_mask` covers those too.

        `vision` is what `embed` was given. A token of segment n > 0 sees, and counts its position from, the tokens of
        segment 0 and its own only; a family that cannot do that raises InputError. Tokens of segment `masks.TOGETHER`
        look at each other, and at all before them; they alone may follow those of a cache as a segment.
        In a prefix-LM (PaliGemma) segment 0 attends in both directions: what is predicted must be of another, and a
        call with neither segments nor a cache raises InputError.
        """
        ...

    def next_position(self, attention_mask: Bool[Tensor, "b m"], cache: Any | None = None) -> Int[Tensor, "b"]:
        """The position of the token after those of `attention_mask`, the first m of those in `cache`."""
        ...

    def logits(self, hidden: Float[Tensor, "*b d"]) -> Float[Tensor, "*b v"]: ...

    def new_cache(self) -> Any: ...

    def crop(self, cache: Any, length: int) -> Any:
        """Keeps the first `length` tokens, in place; returns the cache."""
        ...

    def fork(self, cache: Any, copies: int) -> Any:
        """A cache with each row `copies` times; the given one stays as it is."""
        ...

    def add_token_embeddings(self, count: int) -> None:
        """Grows the vocabulary by exactly `count` rows behind the present ones."""
        ...

    def vocab_weights(self) -> tuple[Float[Tensor, "_r d"], Float[Tensor, "_r d"]]:
        """The matrices that hold the last rows of the vocabulary as their last: of the embedding, and of the output."""
        ...

    def freezable_modules(self) -> dict[str, nn.Module]:
        """The modules that a training stage freezes by name: vision, connector, language."""
        ...
