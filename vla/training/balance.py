"""Loss weights that balance the sources of a step, independent of the lengths of answers and action chunks.

An unweighted sum over elements is dominated by the source with most elements: with action chunks of 50 x 14, questions
were 30 % of the rows but 1 % of the loss.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from vla.models.vla import NUMBERS, POINTS, TOKENS, WORDS
from vla.training.batches import SPARE

KINDS = {WORDS: 1.0, POINTS: 3.2, TOKENS: 2.4, NUMBERS: 10.0}
"""Total weight of a row's elements, by kind. The values reproduce `vla demo` (action chunks of 6 x 6, five questions a
row) with element weights of 1, 10 for points (few tokens, on which the action tokens depend) and 4 for numbers (smaller
losses than tokens)."""


def numbered(sources: Sequence[str]) -> dict[str, int]:
    """An index for each source; the last is for rows without a source."""
    return {source: i for i, source in enumerate((*sources, SPARE))}


def count(
    kind: Int[Tensor, "b"], rows: Int[Tensor, "n"], kinds: Int[Tensor, "n"], sources: int
) -> Float[Tensor, "s k"]:
    """Counts the rows of each source in a batch, and their elements of each of `KINDS`.

    Args:
        kind: The source index of each row.
        rows: The row of each element (`VLA.elements`).
        kinds: The kind of each element (`VLA.elements`).
        sources: The number of sources.
    """
    elements = torch.bincount(kind[rows] * len(KINDS) + kinds, minlength=sources * len(KINDS))
    row_counts = torch.bincount(kind, minlength=sources)
    return torch.cat([row_counts[:, None], elements.unflatten(0, (sources, -1))], 1).double()


def element_weights(
    counts: Float[Tensor, "s k"], sources: Sequence[str], loss_weights: Mapping[str, float]
) -> Float[Tensor, "s e"]:
    """The loss weight of an element, by source and kind; the weights of all elements of the batch sum to 1.

    The elements of one kind in one source share a weight proportional to the number of the source's rows, its value in
    `loss_weights`, and the kind's value in `KINDS`. `counts` are of the full batch over all ranks (`count`).
    """
    rows, elements = counts[:, :1], counts[:, 1:]
    by_source = counts.new_tensor([*(loss_weights.get(source, 1.0) for source in sources), 0.0])
    shares = rows * by_source[:, None] * counts.new_tensor([KINDS[kind] for kind in range(len(KINDS))])
    shares = shares * (elements > 0)
    return shares / shares.sum().clamp(min=1e-12) / elements.clamp(min=1)
