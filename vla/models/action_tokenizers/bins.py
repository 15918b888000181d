"""Uniform bins: each component of each action is one token (RT-2; OpenVLA, sec. 3.2)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Num


@dataclass(frozen=True)
class UniformBins:
    """Uniform bins over [-limit, limit], decoded to their centres; the error in that range is at most half a bin.

    The limit exceeds the data's quantiles at ±1, so that the outermost 2 % of the data are not all clipped to the edge
    of the workspace. Tokens are ordered by step, then component.
    """

    bins: int = 256
    limit: float = 1.2

    @property
    def vocab_size(self) -> int:
        """See `ActionTokenizer.vocab_size`."""
        return self.bins

    @property
    def width(self) -> float:
        """Width of a bin."""
        return 2 * self.limit / self.bins

    def encode(self, actions: Float[np.ndarray, "h a"]) -> Int[np.ndarray, "n"]:
        """See `ActionTokenizer.encode`."""
        index = np.floor((np.asarray(actions, np.float64) + self.limit) / self.width)
        return np.clip(index, 0, self.bins - 1).astype(np.int64).reshape(-1)

    def decode(self, tokens: Num[np.ndarray, "n"], horizon: int, dim: int) -> Float[np.ndarray, "h a"] | None:
        """The actions of bin indices, which may be fractional; None for an invalid index or a wrong count."""
        if not _valid_bins(tokens, horizon * dim, self.bins):
            return None
        return ((tokens + 0.5) * self.width - self.limit).reshape(horizon, dim)


@dataclass(frozen=True)
class OpenVLABins:
    """The bins of OpenVLA's checkpoints, bit-exact: 256 edges from -1 to 1, and so 255 bins, for 256 tokens.

    Token k has the id `vocabulary - 256 + k` in the model, where `vocabulary` is the size before padding; the last id
    encodes -1. A value of exactly 1 is on the last edge, token 0, which decodes to the same centre as token 1. The
    error in [-1, 1] is at most half a bin, 1/255; other values are clipped.
    """

    vocab_size: int = 256

    def encode(self, actions: Float[np.ndarray, "h a"]) -> Int[np.ndarray, "n"]:
        """See `ActionTokenizer.encode`."""
        clipped = np.clip(actions, -1.0, 1.0)
        return (self.vocab_size - np.digitize(clipped, self._edges())).astype(np.int64).reshape(-1)

    def decode(self, tokens: Num[np.ndarray, "n"], horizon: int, dim: int) -> Float[np.ndarray, "h a"] | None:
        """The actions of bin indices, which may be fractional; None for an invalid index or a wrong count."""
        if not _valid_bins(tokens, horizon * dim, self.vocab_size):
            return None
        edges = self._edges()
        centres = (edges[:-1] + edges[1:]) / 2
        index = np.clip(self.vocab_size - tokens - 1, 0, len(centres) - 1)
        return np.interp(index, np.arange(len(centres)), centres).reshape(horizon, dim)

    def _edges(self) -> Float[np.ndarray, "e"]:
        return np.linspace(-1.0, 1.0, self.vocab_size)


def _valid_bins(tokens: Num[np.ndarray, "n"], count: int, bins: int) -> bool:
    return count > 0 and len(tokens) == count and bool(tokens.min() >= -0.5 and tokens.max() <= bins - 0.5)
