"""Cross-attention to images before the layers of any causal language model.

The blocks are forward hooks of the decoder's layers, so that the classes of the library and the names of their weights
do not change. Gates start at zero: the initial model equals the text-only model exactly. Shapes: b rows, l tokens, d
hidden size, k images per row, p features per image, c their width, g blocks, w width of a block's keys and values.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from vla.errors import InputError
from vla.models.backbones.attention import CrossAttention, SwiGLU, feed_forward


class CrossBlock(nn.Module):
    """x += tanh(g_a) attention(norm x, images); x += tanh(g_f) ff(x), with both gates initially zero."""

    runs: bool
    """Whether a token attends to all images of the latest run of images, or only to the latest image."""
    norm: nn.Module
    attention: CrossAttention
    ff: nn.Module

    def __init__(self) -> None:
        super().__init__()
        self.attention_gate, self.ff_gate = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
        self.keys: Tensor | None = None
        self.allowed: Tensor | None = None

    def before(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """The forward pre-hook of a decoder layer, which applies this block to the layer's input."""
        if args:
            return (self(args[0], self.keys, self.allowed), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": self(kwargs["hidden_states"], self.keys, self.allowed)}

    def forward(
        self, x: Float[Tensor, "b l d"], keys: Float[Tensor, "b s w"] | None, allowed: Bool[Tensor, "b l s"] | None
    ) -> Float[Tensor, "b l d"]:
        """Hidden states after attention to `keys`, where `allowed`, and the feed-forward network."""
        if keys is not None:
            x = x + self.attention_gate.tanh() * self.attention(self.norm(x), keys, allowed)
        return x + self.ff_gate.tanh() * self._feed(x, allowed)

    def _feed(self, x: Float[Tensor, "b l d"], allowed: Bool[Tensor, "b l s"] | None) -> Float[Tensor, "b l d"]:
        return self.ff(x)


class FlamingoBlock(CrossBlock):
    """Flamingo's gated cross-attention to the latest image before the token."""

    runs = False

    def __init__(self, language: Any, media_width: int, heads: int = 8, head_width: int = 64) -> None:
        super().__init__()
        width = language.hidden_size
        self.norm = nn.LayerNorm(width)
        self.attention = CrossAttention(width, media_width, heads, head_width)
        self.ff = feed_forward(width)


class AdapterBlock(CrossBlock):
    """Llama 3.2's cross-attention: the decoder's heads, normalised queries and keys, SwiGLU.

    Tokens before any image are unchanged.
    """

    runs = True

    def __init__(self, language: Any, media_width: int) -> None:
        super().__init__()
        width, heads = language.hidden_size, language.num_attention_heads
        key_heads = getattr(language, "num_key_value_heads", None)
        inner = getattr(language, "intermediate_size", None) or 4 * width
        self.norm = nn.RMSNorm(width, eps=1e-5)
        self.attention = CrossAttention(width, media_width, heads, width // heads, key_heads, normalized=True)
        self.ff = SwiGLU(width, inner)

    def _feed(self, x: Float[Tensor, "b l d"], allowed: Bool[Tensor, "b l s"] | None) -> Float[Tensor, "b l d"]:
        if allowed is None:
            return torch.zeros_like(x)
        return self.ff(x).masked_fill(~allowed.any(-1, keepdim=True), 0)


BLOCKS: dict[str, type[CrossBlock]] = {"flamingo": FlamingoBlock, "adapter": AdapterBlock}


class CrossAttentionBlocks(nn.ModuleList):
    """Cross-attention blocks, hooked to every `every`-th layer of `language`, a causal LM of transformers.

    Raises:
        InputError: for an unknown kind or option, and when there would be no block.
    """

    def __init__(self, language: Any, media_width: int, kind: str = "flamingo", every: int = 1, **options: Any) -> None:
        layers = decoder_layers(language)
        if kind not in BLOCKS:
            raise InputError(f"there is no cross-attention {kind}: choose of {', '.join(BLOCKS)}")
        if not 1 <= every <= len(layers):
            raise InputError(f"cross-attention before every {every} of {len(layers)} layers: choose 1 to {len(layers)}")
        made: Any = BLOCKS[kind]
        hooked = [layers[i] for i in range(every - 1, len(layers), every)]
        try:
            super().__init__(made(language.config, media_width, **options) for _ in hooked)
        except TypeError as error:
            raise InputError(f"cross-attention {kind} does not take {options}: {error}") from error
        self.runs = BLOCKS[kind].runs
        for layer, block in zip(hooked, self, strict=True):
            layer.register_forward_pre_hook(block.before, with_kwargs=True)

    def __iter__(self) -> Iterator[Any]:
        return super().__iter__()

    def keys(self, media: Float[Tensor, "b k p c"]) -> Float[Tensor, "b g k p w"]:
        """Keys and values of every block, computed once for all later tokens."""
        keys = torch.stack([block.attention.keys(media.flatten(1, 2)) for block in self], 1)
        return keys.unflatten(2, media.shape[1:3])

    def set_context(
        self, keys: Float[Tensor, "b g k p w"] | None, image_tokens: Bool[Tensor, "b m"], length: int
    ) -> None:
        """Sets the keys and values for the next call of the decoder with the last `length` of m tokens.

        Args:
            keys: from `keys`; None without images.
            image_tokens: mask of the image tokens.
        """
        if keys is None:
            self.clear_context()
            return
        images, features = keys.shape[2:4]
        visible = (latest_run if self.runs else latest_image)(image_tokens, images)[:, -length:]
        for i, block in enumerate(self):
            block.keys, block.allowed = keys[:, i].flatten(1, 2), visible.repeat_interleave(features, 2)

    def clear_context(self) -> None:
        """Removes the keys and values of the last call."""
        for block in self:
            block.keys = block.allowed = None


def latest_image(image_tokens: Bool[Tensor, "b m"], images: int) -> Bool[Tensor, "b m k"]:
    """Whether each image is the latest one up to a token."""
    return image_tokens.long().cumsum(1)[:, :, None] == torch.arange(1, images + 1, device=image_tokens.device)


def latest_run(image_tokens: Bool[Tensor, "b m"], images: int) -> Bool[Tensor, "b m k"]:
    """Whether each image belongs to the latest run of images up to a token, and is not after the token."""
    starts = image_tokens & ~F.pad(image_tokens, (1, 0))[:, :-1]
    runs, count = starts.long().cumsum(1), image_tokens.long().cumsum(1)
    past = count[:, :, None] >= torch.arange(1, images + 1, device=image_tokens.device)
    # The run of an image is that of its token.
    return past & (runs[:, :, None] == runs.gather(1, past.long().argmax(1))[:, None])


def decoder_layers(language: Any) -> nn.ModuleList:
    """The layers of a causal language model. Raises InputError when they are not in one `ModuleList`."""
    count = language.config.num_hidden_layers
    for module in language.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise InputError(f"{type(language).__name__} has no list of its {count} layers to put cross-attention before")
