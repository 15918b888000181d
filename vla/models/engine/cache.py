"""A static KV cache: allocated once and written in place."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from vla.models.engine.layers import Sizes


@dataclass(frozen=True)
class LayerKV:
    """Keys and values of a layer, in the form that `vla.models.action_heads.decoding.keys_values` reads."""

    keys: Float[Tensor, "b g m e"]
    values: Float[Tensor, "b g m e"]


class StaticCache:
    """A KV cache for up to `capacity` tokens of `rows` rows, of which the first `length` are valid.

    `padded`: whether a row has padding tokens, which must be masked.
    """

    def __init__(
        self, layers: int, rows: int, capacity: int, sizes: Sizes, dtype: torch.dtype, device: torch.device
    ) -> None:
        shape = (layers, 2, rows, sizes.kv_heads, capacity, sizes.head_dim)
        self.memory = torch.zeros(shape, dtype=dtype, device=device)
        self.length, self.padded = 0, False

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.memory.shape[2]

    @property
    def capacity(self) -> int:
        """Maximum number of tokens."""
        return self.memory.shape[4]

    def views(self, length: int) -> list[tuple[Float[Tensor, "b g m e"], Float[Tensor, "b g m e"]]]:
        """Views of the keys and values of the first `length` tokens, per layer. Writing to them changes the cache."""
        tensors = self.memory[..., :length, :].flatten(0, 1).unbind()
        return list(zip(tensors[::2], tensors[1::2], strict=True))

    @property
    def layers(self) -> list[LayerKV]:
        """Keys and values of each layer, of the valid tokens."""
        return [LayerKV(keys, values) for keys, values in self.views(self.length)]

    def grown(self, capacity: int) -> StaticCache:
        """A copy with a larger capacity."""
        new = StaticCache.__new__(StaticCache)
        new.memory = torch.nn.functional.pad(self.memory, (0, 0, 0, capacity - self.capacity))
        new.length, new.padded = self.length, self.padded
        return new
