"""How much each source counts in the loss of a step, whatever the length of its answers and of its chunks.

A sum over all elements is that of those that are many: with chunks of 50 x 14 questions, of 30 % of the rows, had 1 %
of the loss.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vla.models.vla import NUMBERS, POINTS, TOKENS, WORDS
from vla.training.batches import SPARE

KINDS = {WORDS: 1.0, POINTS: 3.2, TOKENS: 2.4, NUMBERS: 10.0}
"""How much a row's elements of each kind weigh together: as in `vla demo` (chunks of 6 x 6, five questions a row) when
elements weighed 1, those of points, on whose few tokens all of the action's rest, 10, and numbers, whose losses are
smaller than those of tokens, 4."""


def numbered(sources: Sequence[str]) -> dict[str, int]:
    """A number for each source, the last for rows that are of none."""
    return {source: i for i, source in enumerate((*sources, SPARE))}


def count(
    kind: Int[Tensor, "b"], rows: Int[Tensor, "n"], kinds: Int[Tensor, "n"], sources: int
) -> Float[Tensor, "s k"]:
    """How many rows a batch has of each source, and how many elements of each of `KINDS`. Its rows are of the sources
    `kind`; `rows` and `kinds` are `VLA.elements`."""
    elements = torch.bincount(kind[rows] * len(KINDS) + kinds, minlength=sources * len(KINDS))
    own = torch.bincount(kind, minlength=sources)
    return torch.cat([own[:, None], elements.unflatten(0, (sources, -1))], 1).double()


def element_weights(
    counts: Float[Tensor, "s k"], sources: Sequence[str], loss_weights: Mapping[str, float]
) -> Float[Tensor, "s e"]:
    """What an element weighs, by its source and its kind; those of the whole batch weigh 1 together.

    The elements of one kind in one source share, however many they are, a weight in proportion to the source's rows,
    its weight in `loss_weights`, and the kind's in `KINDS`. `counts` are those of the whole batch (`count`).
    """
    rows, elements = counts[:, :1], counts[:, 1:]
    by_source = counts.new_tensor([*(loss_weights.get(source, 1.0) for source in sources), 0.0])
    shares = rows * by_source[:, None] * counts.new_tensor([KINDS[kind] for kind in range(len(KINDS))])
    shares = shares * (elements > 0)
    return shares / shares.sum().clamp(min=1e-12) / elements.clamp(min=1)
