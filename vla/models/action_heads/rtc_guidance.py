"""Guidance of a flow towards the chunk that is being executed.

Source: real-time chunking, Black et al. 2025, arXiv 2506.07339, eq. 2 to 5.

This project has noise at t = 1 and actions at t = 0, with the velocity noise - actions. The paper's time is 1 - t, and
its velocity has the opposite sign.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

MAX_GUIDANCE_WEIGHT = 5.0
"""The paper's beta."""


@dataclass(frozen=True)
class RTCGuidance:
    """Guidance towards the leftover of the previous chunk, stronger for earlier actions.

    Attributes:
        previous_chunk_leftover: the previous chunk's normalised actions after the prefix.
        vjp: use the exact Jacobian of the denoised chunk, at the cost of a backward pass per step; else the identity.
    """

    previous_chunk_leftover: Float[Tensor, "b m a"]
    vjp: bool


def prefix_weights(prefix_length: int, previous_chunk_leftover: int, horizon: int) -> Float[Tensor, "h"]:
    """Guidance weight of each action: 1 in the prefix, c expm1(c) / (e - 1) in the leftover, 0 after it.

    c decreases in equal steps from below 1 to above 0 (eq. 5, where H - s = prefix_length + previous_chunk_leftover).
    """
    step = torch.arange(horizon)
    c = (prefix_length + previous_chunk_leftover - step).clamp(min=0) / (previous_chunk_leftover + 1)
    return torch.where(step < prefix_length, 1.0, c * torch.expm1(c) / (math.e - 1))


def guidance_weight(time: float) -> float:
    """min(MAX_GUIDANCE_WEIGHT, (t^2 + (1 - t)^2) / (t (1 - t))), which is infinite at both ends."""
    return min(MAX_GUIDANCE_WEIGHT, (time**2 + (1 - time) ** 2) / max(time * (1 - time), 1e-9))


def guided(
    velocity: Callable[[Float[Tensor, "b h a"]], Float[Tensor, "b h a"]],
    x: Float[Tensor, "b h a"],
    time: float,
    old: Float[Tensor, "b h a"],
    weights: Float[Tensor, "h"],
    vjp: bool,
) -> Float[Tensor, "b h a"]:
    """The guided velocity u - guidance_weight J^T W (old - x_0), with u at x and the denoised chunk x_0 = x - t u."""
    mask = weights.to(x.device)[:, None]
    if not vjp:
        u = velocity(x)
        return u - guidance_weight(time) * mask * (old - (x - time * u))
    with torch.enable_grad():
        # The graph must contain the computation of u; otherwise the Jacobian is the identity.
        x = x.detach().requires_grad_()
        u = velocity(x)
        denoised = x - time * u
        (pull,) = torch.autograd.grad(denoised, x, mask * (old - denoised.detach()))
    return u.detach() - guidance_weight(time) * pull
