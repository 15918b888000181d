"""The interface that a vision-language model must provide for an action head."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vla.common.images import Size
from vla.models.backbone_inputs import DecoderInput, ImageInput


@runtime_checkable
class Backbone(Protocol):
    """A vision-language model: images and text to hidden states and next-token logits. It is an `nn.Module`.

    In `input_ids` each image is copies of `image_token_id`, `tokens_per_image` of them for an image of `image_size`,
    with the tokens that the family writes around or between them (`<|vision_start|>`, `[IMG_BREAK]`).
    Shapes: b rows, l new tokens, m tokens including cached ones, d hidden size, v vocabulary size.
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

    def encode_images(self, images: ImageInput) -> Any:
        """Encodes the valid frames, in the form that `embed` and `forward` of this family need."""
        ...

    def embed(self, input_ids: Int[Tensor, "b l"], vision: Any | None) -> Float[Tensor, "b l d"]:
        """Token embeddings, with the image features at the image tokens, in order.

        A family whose positions or attention depend on the image tokens records these in `vision`.
        """
        ...

    def embed_tokens(self, input_ids: Int[Tensor, "b l"]) -> Float[Tensor, "b l d"]:
        """Token embeddings of text without images."""
        ...

    def forward(self, inputs: DecoderInput) -> tuple[Float[Tensor, "b l d"], Any]:
        """The last hidden states of the new tokens, and the updated cache.

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
        """Appends exactly `count` tokens to the vocabulary; a negative count removes the last ones."""
        ...

    def vocab_weights(self) -> tuple[Float[Tensor, "_r d"], Float[Tensor, "_r d"]]:
        """Weights of the embedding and of the output layer; their last rows are the vocabulary's last tokens."""
        ...

    def freezable_modules(self) -> dict[str, nn.Module]:
        """The modules that a training stage can freeze: vision, connector, language."""
        ...
