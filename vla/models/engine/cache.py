"""Keys and values at a fixed place: allocated once, written where they belong."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from vla.models.engine.layers import Sizes


@dataclass(frozen=True)
class LayerKV:
    """What `vla.models.action_heads.decoding.keys_values` reads of a layer."""

    keys: Float[Tensor, "b g m e"]
    values: Float[Tensor, "b g m e"]


class StaticCache:
    """Room for `capacity` tokens of `rows` rows, of which `length` are known.

    `padded` says whether a row has tokens that nothing may look at.
    """

    def __init__(
        self, layers: int, rows: int, capacity: int, sizes: Sizes, dtype: torch.dtype, device: torch.device
    ) -> None:
        shape = (layers, 2, rows, sizes.kv_heads, capacity, sizes.head_dim)
        self.memory = torch.zeros(shape, dtype=dtype, device=device)
        self.length, self.padded = 0, False

    @property
    def rows(self) -> int:
        return self.memory.shape[2]

    @property
    def capacity(self) -> int:
        return self.memory.shape[4]

    def views(self, length: int) -> list[tuple[Float[Tensor, "b g m e"], Float[Tensor, "b g m e"]]]:
        """Keys and values of each layer, of the first `length` tokens: written to, they change the cache."""
        each = self.memory[..., :length, :].flatten(0, 1).unbind()
        return list(zip(each[::2], each[1::2], strict=True))

    @property
    def layers(self) -> list[LayerKV]:
        return [LayerKV(keys, values) for keys, values in self.views(self.length)]

    def grown(self, capacity: int) -> StaticCache:
        """A copy with more room."""
        new = StaticCache.__new__(StaticCache)
        new.memory = torch.nn.functional.pad(self.memory, (0, 0, 0, capacity - self.capacity))
        new.length, new.padded = self.length, self.padded
        return new
