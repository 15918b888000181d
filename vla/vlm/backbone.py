"""What a vision-language model must offer to carry an action head."""

from __future__ import annotations

from typing import Any, Protocol

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn


class Backbone(Protocol):
    """Images and text in, hidden states and next-token logits out.

    In `input_ids` each image of a row stands as `tokens_per_image` copies of `image_token_id`.
    """

    hidden_size: int
    vocab_size: int
    tokens_per_image: int
    image_size: int
    image_token_id: int

    def embed(
        self,
        input_ids: Int[Tensor, "b l"],
        pixel_values: Float[Tensor, "b k 3 h w"],
        image_mask: Bool[Tensor, "b k"],
    ) -> Float[Tensor, "b l d"]:
        """Token embeddings with the features of the images (mask True) at their placeholders, in order."""
        ...

    def hidden(
        self,
        embeds: Float[Tensor, "b l d"],
        attention_mask: Bool[Tensor, "b m"],
        cache: Any | None = None,
        segments: Int[Tensor, "b l"] | None = None,
    ) -> tuple[Float[Tensor, "b l d"], Any]:
        """Last hidden states. With a cache of m - l earlier tokens, `attention_mask` covers those too.

        A token of segment n > 0 sees, and counts its position from, the tokens of segment 0 and its own only.
        """
        ...

    def logits(self, hidden: Float[Tensor, "*b d"]) -> Float[Tensor, "*b v"]: ...

    def add_rows(self, count: int) -> None:
        """Grows the vocabulary by `count` rows, of which `vocab_size` then tells."""
        ...

    def parts(self) -> dict[str, nn.Module]:
        """The modules that a training stage freezes by name: vision, connector, language."""
        ...
