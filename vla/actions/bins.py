"""Uniform bins: each component of each action is one token (RT-2; OpenVLA, sec. 3.2)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Num


@dataclass(frozen=True)
class UniformBins:
    """`bins` equal bins over [-limit, limit], decoded to their centres: in that range within half a bin.

    The limit reaches beyond the quantiles at ±1, so that the outermost 2 % of the data are not all
    clipped to the edge of the workspace. Tokens run through time, the components of one step together.
    """

    bins: int = 256
    limit: float = 1.2

    @property
    def vocab_size(self) -> int:
        return self.bins

    @property
    def width(self) -> float:
        return 2 * self.limit / self.bins

    def encode(self, actions: Float[np.ndarray, "h a"]) -> Int[np.ndarray, "n"]:
        index = np.floor((np.asarray(actions, np.float64) + self.limit) / self.width)
        return np.clip(index, 0, self.bins - 1).astype(np.int64).reshape(-1)

    def decode(self, tokens: Num[np.ndarray, "n"], dim: int) -> Float[np.ndarray, "h a"] | None:
        """`tokens` may be fractions of a bin; none when one is no bin, or they are no whole actions."""
        if len(tokens) == 0 or len(tokens) % dim or not (tokens.min() >= -0.5 and tokens.max() <= self.bins - 0.5):
            return None
        return ((tokens + 0.5) * self.width - self.limit).reshape(-1, dim)
