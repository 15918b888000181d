"""AdamW with decay on matrices only, warm-up and cosine, and a moving average of the weights."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vla.errors import InputError
from vla.model import VLA


def freeze(model: VLA, parts: tuple[str, ...]) -> None:
    """Stops the gradient of these parts of the backbone (vision, connector, language)."""
    known = model.backbone.parts()
    for name in parts:
        if name not in known:
            raise InputError(f"cannot freeze {name}: the backbone's parts are {sorted(known)}")
        known[name].requires_grad_(False)


def adamw(model: VLA, weight_decay: float, lr_scales: Mapping[str, float]) -> torch.optim.AdamW:
    """Groups carry `lr_scale`: that of the backbone's part they belong to, else 1."""
    part_of = {id(p): name for name, part in model.backbone.parts().items() for p in part.parameters()}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            scale = lr_scales.get(part_of.get(id(parameter), ""), 1.0)
            decay = weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((scale, decay), []).append(parameter)
    return torch.optim.AdamW(
        [{"params": p, "weight_decay": decay, "lr_scale": scale} for (scale, decay), p in groups.items()],
        betas=(0.9, 0.98),
        fused=True,
    )


def learning_rate(step: int, steps: int, peak: float, warmup: int) -> float:
    """Linear to `peak` over `warmup` steps, then a cosine to a twentieth of it at `steps`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return peak * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress)))


class Ema:
    """Exponential moving average of the trainable weights; young averages forget faster."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.weights: dict[str, Tensor] = {n: p.detach().clone() for n, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        trainable = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        averages = [self.weights[n] for n, _ in trainable]
        torch._foreach_lerp_(averages, [p.detach() for _, p in trainable], 1 - decay)

    @torch.no_grad()
    def swap(self, model: nn.Module) -> None:
        """Exchanges the model's weights with the average; a second call undoes it."""
        for name, parameter in model.named_parameters():
            held = parameter.detach().clone()
            parameter.copy_(self.weights[name])
            self.weights[name] = held
