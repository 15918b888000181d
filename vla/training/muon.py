"""Muon: orthogonalised momentum (Jordan et al. 2024).

Updates are scaled to AdamW's size (Moonlight, Liu et al. 2025, arXiv 2502.16982, sec. 2.2).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from vla.common.device import native_bf16

MOMENTUM = 0.95
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Coefficients of the Newton-Schulz polynomial, which moves singular values close to 1 in few steps."""


class Muon(torch.optim.Optimizer):
    """As `torch.optim.Muon(adjust_lr_fn="match_rms_adamw")`, with support for sharded matrices.

    The momentum is sharded; the update is gathered before it is orthogonalised.
    """

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        super().__init__(groups, {"lr": 0.0, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                state = self.state[matrix]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(matrix.grad)
                momentum = state["momentum_buffer"].lerp_(matrix.grad, 1 - MOMENTUM)
                update = matrix.grad.lerp(momentum, MOMENTUM)
                matrix.mul_(1 - group["lr"] * group["weight_decay"])
                matrix.add_(_direction(update), alpha=-group["lr"] * 0.2 * math.sqrt(max(matrix.shape)))


def _direction(update: Float[Tensor, "m n"]) -> Float[Tensor, "m n"]:
    """The orthogonalised update; of a sharded update each rank computes the full matrix and returns its shard."""
    if not isinstance(update, DTensor):
        return orthogonal(update)
    full = orthogonal(update.full_tensor())
    return distribute_tensor(full, update.device_mesh, update.placements, src_data_rank=None)


def orthogonal(matrix: Float[Tensor, "m n"], steps: int = 5) -> Float[Tensor, "m n"]:
    """Approximates U V^T of the matrix U S V^T by Newton-Schulz, with singular values from 0.7 to 1.2.

    The precision is bfloat16 where the device has it, else float32.
    """
    a, b, c = COEFFICIENTS
    x = matrix.to(torch.bfloat16 if native_bf16(matrix.device) else torch.float32)
    if tall := x.shape[0] > x.shape[1]:
        x = x.T
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x
