"""Gradient norms of the sources of a mixture, and the cosines between their gradients.

The cosines are those of PCGrad (Yu et al. 2020, arXiv 2001.06782, sec. 2.2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations

from torch import Tensor
from torch.distributed.tensor import DTensor

from vla.models.batch import Batch
from vla.training.state import TrainState
from vla.training.step import backward


def gradient_shares(state: TrainState, micro: Sequence[Batch]) -> dict[str, float]:
    """`share/gradient/<source>`: the norm of the source's gradient over the sum of these norms.

    Takes one pass over the batch per source, and no more memory than a step. Sources without rows are omitted.
    """
    found = {}
    for source in state.sources:
        gradient = _gradient(state, micro, source)
        found[source] = state.world.sum([_product(gradient, gradient)])[0] ** 0.5
        del gradient
    state.model.zero_grad()
    return _shares({source: norm for source, norm in found.items() if norm > 0})


def _shares(norms: Mapping[str, float]) -> dict[str, float]:
    return {f"share/gradient/{source}": norm / sum(norms.values()) for source, norm in norms.items()}


def gradient_report(state: TrainState, micro: Sequence[Batch]) -> dict[str, float]:
    """The gradient norm of each source, its share, and the cosine of each pair of sources.

    The gradients of the sources sum to the step's gradient before clipping. Takes one pass over the batch, and the
    memory of one gradient, per source.

    Returns:
        `gradient/<source>`, `share/gradient/<source>` (`gradient_shares`) and `gradient_cosine/<a>·<b>`; sources
        without rows are omitted.
    """
    sources = state.sources
    found = {source: _gradient(state, micro, source) for source in sources}
    state.model.zero_grad()
    pairs = [(s, s) for s in sources] + list(combinations(sources, 2))
    products = dict(zip(pairs, state.world.sum(_product(found[a], found[b]) for a, b in pairs), strict=True))
    norms = {s: products[s, s] ** 0.5 for s in sources if products[s, s] > 0}
    cosines = {(a, b): products[a, b] / (norms[a] * norms[b]) for a, b in combinations(norms, 2)}
    lengths = {f"gradient/{s}": n for s, n in norms.items()} | _shares(norms)
    return lengths | {f"gradient_cosine/{a}·{b}": cosine for (a, b), cosine in cosines.items()}


def _gradient(state: TrainState, micro: Sequence[Batch], source: str) -> dict[str, Tensor]:
    """This rank's shard of the gradient of one source."""
    state.model.zero_grad()
    backward(state, micro, only={source})
    grads = {name: p.grad for name, p in state.model.named_parameters() if p.grad is not None}
    return {name: grad.to_local() if isinstance(grad, DTensor) else grad for name, grad in grads.items()}


def _product(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    return float(sum((one[name].double() * other[name].double()).sum() for name in one.keys() & other.keys()))
