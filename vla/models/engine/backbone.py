"""A backbone with a faster language model: the original vision encoder with a `FusedDecoder`."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from vla.errors import InputError
from vla.models.backbone_inputs import DecoderInput, ImageInput
from vla.models.backbones.backbone import Backbone
from vla.models.backbones.cache import Vision
from vla.models.backbones.composed import ComposedVLM
from vla.models.backbones.prismatic import Prismatic
from vla.models.backbones.token_family import MROPE, NATIVE, PromptLayout, TokenFamily
from vla.models.engine.cache import StaticCache
from vla.models.engine.decoder import FusedDecoder, can_fuse
from vla.models.engine.graphs import Graphs
from vla.models.engine.layers import dtype_of
from vla.models.masks import TOGETHER

MARGIN = 64
"""Tokens that a new cache can hold after the prompt; it grows when that is exceeded."""


def decoder_of(backbone: Backbone) -> Any | None:
    """The decoder of a backbone that can be fused; None for any other, which is used unchanged."""
    if not isinstance(backbone, ComposedVLM | TokenFamily | Prismatic) or backbone.config["family"] in MROPE:
        return None
    return backbone.decoder if can_fuse(backbone.decoder) else None


class FusedBackbone(nn.Module):
    """The subset of `Backbone` that decoding needs, without segments and `fork`.

    There is one cache: a new prompt overwrites the previous one.
    """

    def __init__(self, backbone: Any, decoder: Any, precision: str, graphs: Graphs) -> None:
        super().__init__()
        self.decoder, self.graphs = FusedDecoder(decoder, precision), graphs
        self.dtype = dtype_of(precision)
        if self.dtype != torch.float32:
            # Copy everything except the decoder's layers, which are replaced by fused ones.
            backbone = copy.deepcopy(backbone, {id(decoder.layers): nn.ModuleList()}).to(self.dtype)
        self.plain: Any = backbone
        plain = PromptLayout(prefix_lm=False, first_position=0)
        self._prompt = backbone.prompt if isinstance(backbone, TokenFamily | Prismatic) else plain
        self._bidirectional, self._offset = self._prompt.prefix_lm, self._prompt.first_position
        self._cache: StaticCache | None = None
        self._out = [backbone.language_model.get_output_embeddings()]  # a module of `plain`
        self.hidden_size, self.image_token_id = backbone.hidden_size, backbone.image_token_id

    def encode_images(self, images: ImageInput) -> Any:
        """See `Backbone.encode_images`. Uses a CUDA graph where no image is missing and each image fills its frame."""
        pixels, content, fills = images.pixel_values.to(self.dtype), images.content, True
        if content is not None and getattr(self.plain, "family", "") in NATIVE:
            fills = bool((content[..., 2:] == content.new_tensor(pixels.shape[:2:-1])).all())
        if not pixels.is_cuda or not fills or not bool(images.mask.all()):
            return self.plain.encode_images(replace(images, pixel_values=pixels))
        # `plain.encode_images` cannot be captured: it reads the mask on the host.
        features = self.graphs.run("encode_images", self.plain.image_features, pixels.flatten(0, 1))
        return Vision(features, len(features))

    def embed(self, input_ids: Int[Tensor, "b l"], vision: Any | None) -> Float[Tensor, "b l d"]:
        """See `Backbone.embed`."""
        return self.plain.embed(input_ids, vision)

    def embed_tokens(self, input_ids: Int[Tensor, "b l"]) -> Float[Tensor, "b l d"]:
        """See `Backbone.embed_tokens`."""
        return self.plain.embed_tokens(input_ids)

    def new_cache(self) -> StaticCache | None:
        """None: `forward` creates the cache, when the number of rows is known."""
        return None

    def forward(self, inputs: DecoderInput) -> tuple[Float[Tensor, "b l d"], StaticCache]:
        """See `Backbone.forward`. Without a cache the tokens are a prompt; later tokens may be `TOGETHER`.

        Raises:
            InputError: for other segments.
        """
        embeds, mask, segments, prompt = inputs.embeds, inputs.attention_mask, inputs.segments, inputs.cache is None
        together = segments is not None and not prompt and bool((segments == TOGETHER).all())
        if segments is not None and not together:
            raise InputError("an engine decodes rows of one segment: train with the model itself")
        rows, length = mask.shape
        cache = self._cache_for(rows, length, prompt)
        if prompt:
            cache.padded = not bool(mask.all())
        first, bidirectional = length - inputs.length, together or (prompt and self._bidirectional)
        if not self.decoder.fits(length + self._offset):
            self.graphs.clear()
        key = ("hidden", first, bidirectional)
        if not cache.padded:
            span = slice(first + self._offset, length + self._offset)
            hidden = self.graphs.run(key, lambda x: self.decoder(x, span, None, cache, first, bidirectional), embeds)
        else:
            order = self._prompt.order(mask)[:, first:] + self._offset
            hidden = self.graphs.run(
                key, lambda x, *args: self.decoder(x, *args, cache, first, bidirectional), embeds, order, mask
            )
        cache.length = length
        return hidden.to(embeds.dtype), cache

    def next_position(self, attention_mask: Bool[Tensor, "b m"], cache: Any | None = None) -> Int[Tensor, "b"]:
        """See `Backbone.next_position`."""
        return self._prompt.next_position(attention_mask)

    def crop(self, cache: StaticCache, length: int) -> StaticCache:
        """See `Backbone.crop`. Later tokens overwrite the rest."""
        cache.length = length
        return cache

    def _cache_for(self, rows: int, length: int, prompt: bool) -> StaticCache:
        """A cache for at least `length` tokens; the existing one, in the same memory, where possible."""
        cache = self._cache
        if cache is None or cache.rows != rows or (prompt and cache.capacity < length):
            cache = self.decoder.new_cache(rows, length + MARGIN)
        elif cache.capacity < length:
            cache = cache.grown(2 * length)
        if cache is not self._cache:
            self.graphs.clear()
            self._cache = cache
        return cache

    def logits(self, hidden: Float[Tensor, "*b d"]) -> Any:
        """Logits by token id, computed lazily for the selected ids where the output layer allows it."""
        out = self._out[0]
        if type(out) is not nn.Linear or out.bias is not None:
            return self.plain.logits(hidden.to(self.dtype))
        return LazyLogits(hidden.to(self.dtype), out.weight)


class LazyLogits:
    """Logits that are computed on indexing: `logits[..., ids]` for a slice or a tensor of token ids."""

    def __init__(self, hidden: Float[Tensor, "*b d"], weight: Float[Tensor, "v d"]) -> None:
        self._hidden, self._weight = hidden, weight

    def __getitem__(self, index: tuple[Any, ...]) -> Float[Tensor, "*b r"]:
        return F.linear(self._hidden, self._weight[index[-1]])
