"""Contrastive losses of image-text pairs, over all ranks and optionally in chunks, with exact gradients.

Rows of `images` and `texts` are unit embeddings; row i of both is a pair. With several ranks (`torch.distributed`) each
passes the same number of pairs. The mean of the ranks' losses and gradients is the loss and gradient of all pairs, as
in data-parallel training. With `chunk`, at most that many rows of the logit matrix are in memory; they are recomputed
in the backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid
from torch.utils.checkpoint import checkpoint


def softmax_loss(
    images: Float[Tensor, "b d"],
    texts: Float[Tensor, "b d"],
    scale: Float[Tensor, ""],
    smoothing: float = 0.0,
    chunk: int | None = None,
) -> Float[Tensor, ""]:
    """CLIP's symmetric cross-entropy (Radford et al. 2021, arXiv 2103.00020, fig. 3).

    ALIGN uses a label smoothing of 0.1 (Jia et al. 2021, arXiv 2102.05918, sec. 4.2).
    """
    every_image, every_text, first = _all(images), _all(texts), _rank() * len(images)

    def total(
        rows: Float[Tensor, "n d"], others: Float[Tensor, "m d"], scale: Float[Tensor, ""], start: int
    ) -> Float[Tensor, ""]:
        targets = first + start + torch.arange(len(rows), device=rows.device)
        return cross_entropy(rows @ others.T * scale, targets, label_smoothing=smoothing, reduction="sum")

    both = ((images, every_text), (texts, every_image))
    return sum((_chunked(total, r, chunk, others, scale) for r, others in both), scale * 0) / (2 * len(images))


def sigmoid_loss(
    images: Float[Tensor, "b d"],
    texts: Float[Tensor, "b d"],
    scale: Float[Tensor, ""],
    bias: Float[Tensor, ""],
    chunk: int | None = None,
) -> Float[Tensor, ""]:
    """SigLIP's loss (Zhai et al. 2023, arXiv 2303.15343, eq. 1).

    -1/B times the sum over all i, j of log sigmoid(z_ij (scale x_i y_j + bias)), with z = 1 for a pair, else -1.
    """
    every_text, first = _all(texts), _rank() * len(images)

    def total(
        rows: Float[Tensor, "n d"], scale: Float[Tensor, ""], bias: Float[Tensor, ""], start: int
    ) -> Float[Tensor, ""]:
        logits = rows @ every_text.T * scale + bias
        sign = -torch.ones_like(logits)
        sign[torch.arange(len(rows)), first + start + torch.arange(len(rows))] = 1.0
        return -logsigmoid(sign * logits).sum()

    return _chunked(total, images, chunk, scale, bias) / len(images)


def _chunked(total: Callable[..., Tensor], rows: Float[Tensor, "b d"], chunk: int | None, *others: Tensor) -> Tensor:
    """The sum of `total` over chunks of the rows."""
    if chunk is None:
        return total(rows, *others, 0)
    chunks: Iterator[tuple[int, Tensor]] = ((at, rows[at : at + chunk]) for at in range(0, len(rows), chunk))
    sums = [checkpoint(total, block, *others, start, use_reentrant=False) for start, block in chunks]
    return torch.stack(sums).sum()


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _all(rows: Float[Tensor, "b d"]) -> Float[Tensor, "n d"]:
    """The rows of all ranks in rank order, differentiable."""
    gathered: Tensor = _Gather.apply(rows) if dist.is_initialized() else rows
    return gathered


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        every = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(every, rows.contiguous())
        return torch.cat(every)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].contiguous()
        dist.all_reduce(gradient)
        return gradient.chunk(dist.get_world_size())[dist.get_rank()]
