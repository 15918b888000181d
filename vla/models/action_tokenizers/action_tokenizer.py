"""The interface of an action tokenizer."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int, Num


@runtime_checkable
class ActionTokenizer(Protocol):
    """Turns normalised actions into tokens 0 … vocab_size - 1 and back."""

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        ...

    def encode(self, actions: Float[np.ndarray, "h a"]) -> Int[np.ndarray, "n"]:
        """The tokens of a normalised chunk."""
        ...

    def decode(self, tokens: Num[np.ndarray, "n"], horizon: int, dim: int) -> Float[np.ndarray, "h a"] | None:
        """The actions, or None when the tokens do not encode exactly `horizon` actions of `dim` components."""
        ...
