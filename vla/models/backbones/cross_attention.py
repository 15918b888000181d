"""Cross-attention to images before the layers of any causal language model, which itself stays as it is.

The blocks hang on the decoder's layers as hooks, so that the library's classes, and the names of their weights, remain
theirs. Gates start at zero: the model begins as its text-only self, to the bit. Shapes: b rows, l tokens, d hidden
size, k images a row, p features an image, c their width, g blocks, w width of a block's keys and values.
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
    """x += tanh(g_a) attention(norm x, images); x += tanh(g_f) ff(x), both gates zero at the start."""

    runs: bool
    """Whether a token looks at all images of the latest run of them, or at the latest one only."""
    norm: nn.Module
    attention: CrossAttention
    ff: nn.Module

    def __init__(self) -> None:
        super().__init__()
        self.attention_gate, self.ff_gate = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
        self.keys: Tensor | None = None
        self.allowed: Tensor | None = None

    def before(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """The hook of a decoder layer: its input passes this block."""
        if args:
            return (self(args[0], self.keys, self.allowed), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": self(kwargs["hidden_states"], self.keys, self.allowed)}

    def forward(
        self, x: Float[Tensor, "b l d"], keys: Float[Tensor, "b s w"] | None, allowed: Bool[Tensor, "b l s"] | None
    ) -> Float[Tensor, "b l d"]:
        if keys is not None:
            x = x + self.attention_gate.tanh() * self.attention(self.norm(x), keys, allowed)
        return x + self.ff_gate.tanh() * self._feed(x, allowed)

    def _feed(self, x: Float[Tensor, "b l d"], allowed: Bool[Tensor, "b l s"] | None) -> Float[Tensor, "b l d"]:
        return self.ff(x)


class FlamingoBlock(CrossBlock):
    """Flamingo's gated cross-attention, to the latest image before the token."""

    runs = False

    def __init__(self, language: Any, media_width: int, heads: int = 8, head_width: int = 64) -> None:
        super().__init__()
        width = language.hidden_size
        self.norm = nn.LayerNorm(width)
        self.attention = CrossAttention(width, media_width, heads, head_width)
        self.ff = feed_forward(width)


class AdapterBlock(CrossBlock):
    """Llama 3.2's: heads as the decoder's, normalised queries and keys, SwiGLU; a token before any image passes."""

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
    """A block before every `every`-th layer of `language`, hooked to it.

    `language` is a causal language model of transformers. Raises InputError for another kind, for an option that it
    does not have, and when there would be no block.
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
            raise InputError(f"cross-attention {kind} is not made of {options}: {error}") from error
        self.runs = BLOCKS[kind].runs
        for layer, block in zip(hooked, self, strict=True):
            layer.register_forward_pre_hook(block.before, with_kwargs=True)

    def __iter__(self) -> Iterator[Any]:
        return super().__iter__()

    def keys(self, media: Float[Tensor, "b k p c"]) -> Float[Tensor, "b g k p w"]:
        """Keys and values of every block: made once, they serve all later tokens."""
        keys = torch.stack([block.attention.keys(media.flatten(1, 2)) for block in self], 1)
        return keys.unflatten(2, media.shape[1:3])

    def look(self, keys: Float[Tensor, "b g k p w"] | None, places: Bool[Tensor, "b m"], length: int) -> None:
        """What the last `length` of m tokens look at in the coming call of the decoder; nothing, if keys are None.

        `places` are the tokens that stand for the images of each row.
        """
        if keys is None:
            self.forget()
            return
        images, features = keys.shape[2:4]
        seen = (latest_run if self.runs else latest_image)(places, images)[:, -length:]
        for i, block in enumerate(self):
            block.keys, block.allowed = keys[:, i].flatten(1, 2), seen.repeat_interleave(features, 2)

    def forget(self) -> None:
        for block in self:
            block.keys = block.allowed = None


def latest_image(places: Bool[Tensor, "b m"], images: int) -> Bool[Tensor, "b m k"]:
    """Whether an image is the latest that a token, or one before it, stands for."""
    return places.long().cumsum(1)[:, :, None] == torch.arange(1, images + 1, device=places.device)


def latest_run(places: Bool[Tensor, "b m"], images: int) -> Bool[Tensor, "b m k"]:
    """Whether an image is of the latest run of images, and not after the token."""
    starts = places & ~F.pad(places, (1, 0))[:, :-1]
    runs, count = starts.long().cumsum(1), places.long().cumsum(1)
    there = count[:, :, None] >= torch.arange(1, images + 1, device=places.device)
    # The run of an image is that of the token where it is counted.
    return there & (runs[:, :, None] == runs.gather(1, there.long().argmax(1))[:, None])


def decoder_layers(language: Any) -> nn.ModuleList:
    """The layers of a causal language model. Raises InputError when they are not in one list."""
    count = language.config.num_hidden_layers
    for module in language.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise InputError(f"{type(language).__name__} has no list of its {count} layers to put cross-attention before")
