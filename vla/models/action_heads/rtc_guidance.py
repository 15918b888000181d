"""Guidance of a flow towards the chunk that is being executed.

Source: real-time chunking, Black et al. 2025, arXiv 2506.07339, eq. 2 to 5.

This project has noise at t = 1 and actions at t = 0, with the velocity noise - actions. The paper's time is 1 - t, and
its velocity has the opposite sign.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from vla.types import GuidanceMode, RTCPrefix

MAX_GUIDANCE_WEIGHT = 5.0
"""The paper's beta."""


def prefix_weights(committed: int, leftover: int, horizon: int) -> Float[Tensor, "h"]:
    """Guidance weight of each action: 1 if committed, c expm1(c) / (e - 1) in the leftover, 0 after it.

    c decreases in equal steps from below 1 to above 0 (eq. 5, where H - s = committed + leftover).
    """
    step = torch.arange(horizon)
    c = (committed + leftover - step).clamp(min=0) / (leftover + 1)
    return torch.where(step < committed, 1.0, c * torch.expm1(c) / (math.e - 1))


def guidance_weight(time: float) -> float:
    """min(MAX_GUIDANCE_WEIGHT, (t^2 + (1 - t)^2) / (t (1 - t))), which is infinite at both ends."""
    return min(MAX_GUIDANCE_WEIGHT, (time**2 + (1 - time) ** 2) / max(time * (1 - time), 1e-9))


def previous_chunk(prefix: RTCPrefix, horizon: int) -> tuple[Float[Tensor, "b h a"], Float[Tensor, "h"]]:
    """The previous chunk, padded with 0 to the horizon, and the guidance weight of each of its actions."""
    assert prefix.leftover is not None
    known = torch.cat([prefix.committed, prefix.leftover], 1)[:, :horizon]
    committed = prefix.committed.shape[1]
    weights = prefix_weights(committed, known.shape[1] - committed, horizon)
    return torch.nn.functional.pad(known, (0, 0, 0, horizon - known.shape[1])), weights


def guided(
    velocity: Callable[[Float[Tensor, "b h a"]], Float[Tensor, "b h a"]],
    x: Float[Tensor, "b h a"],
    time: float,
    previous: Float[Tensor, "b h a"],
    weights: Float[Tensor, "h"],
    guidance_mode: GuidanceMode,
) -> Float[Tensor, "b h a"]:
    """The guided velocity u - guidance_weight J^T W (previous - x_0), where u is at x and x_0 = x - t u denoised."""
    mask = weights.to(x.device)[:, None]
    if guidance_mode == "identity":
        u = velocity(x)
        return u - guidance_weight(time) * mask * (previous - (x - time * u))
    with torch.enable_grad():
        # The graph must contain the computation of u; otherwise the Jacobian is the identity.
        x = x.detach().requires_grad_()
        u = velocity(x)
        denoised = x - time * u
        (pull,) = torch.autograd.grad(denoised, x, mask * (previous - denoised.detach()))
    return u.detach() - guidance_weight(time) * pull
