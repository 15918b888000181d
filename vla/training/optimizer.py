"""Muon and AdamW with decay on matrices only, warm-up and cosine, and a moving average of the weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vla.errors import InputError
from vla.model import VLA
from vla.training.muon import Muon
from vla.training.plan import Optimizer


def freeze(model: VLA, parts: tuple[str, ...]) -> None:
    """Stops the gradient of parts of the backbone: vision, connector, language, or a module in one of them."""
    named = model.backbone.parts().items()
    modules = {f"{part}.{name}".rstrip("."): m for part, module in named for name, m in module.named_modules()}
    for name in parts:
        if name not in modules:
            raise InputError(f"cannot freeze {name}: the backbone's parts are {sorted(model.backbone.parts())}")
        modules[name].requires_grad_(False)


MUON_LR = 2.0
"""Muon's learning rate in units of AdamW's, its updates scaled to the size of AdamW's (Moonlight, sec. 2.2)."""


HEAD = "head"
"""In `lr_scales`, everything that is not the backbone."""


class Optimizers:
    """Muon for the matrices of linear layers, AdamW for everything else (Jordan et al. 2024); or AdamW for all.

    On the nano backbone Muon leaves the plateau at which no word is bound to what it names after 160 steps;
    AdamW alone had not after 600. Groups carry `lr_scale`, which includes that of the backbone's part.
    """

    def __init__(
        self, model: VLA, weight_decay: float, lr_scales: Mapping[str, float], optimizer: Optimizer = "muon"
    ) -> None:
        named = model.backbone.parts()
        if unknown := set(lr_scales) - {*named, HEAD}:
            raise InputError(f"lr_scales names {sorted(unknown)}: there are {sorted(named)} and {HEAD}")
        part_of = {id(p): name for name, part in named.items() for p in part.parameters()}
        backbone = {id(p) for n, p in model.named_parameters() if n.startswith("backbone.")}
        matrices = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear)}
        matrices -= {id(weight) for weight in model.backbone.row_weights()}
        groups: dict[tuple[bool, float, float], list[nn.Parameter]] = {}
        self._trained: dict[str, nn.Parameter] = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.kinds: dict[str, Optimizer] = {}
        """Which optimizer each trained parameter has."""
        for name, parameter in self._trained.items():
            muon, decay = optimizer == "muon" and id(parameter) in matrices, weight_decay if parameter.ndim > 1 else 0.0
            self.kinds[name] = "muon" if muon else "adamw"
            part = part_of.get(id(parameter), "" if id(parameter) in backbone else HEAD)
            scale = lr_scales.get(part, 1.0) * (MUON_LR if muon else 1.0)
            groups.setdefault((muon, scale, decay), []).append(parameter)
        kinds: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
        for (muon, scale, decay), parameters in groups.items():
            kinds[muon].append({"params": parameters, "weight_decay": decay, "lr_scale": scale})
        self._parts: list[torch.optim.Optimizer] = []
        if kinds[True]:
            self._parts.append(Muon(kinds[True]))
        if kinds[False]:
            self._parts.append(torch.optim.AdamW(kinds[False], betas=(0.9, 0.98), fused=True))

    def step(self, lr: float) -> None:
        for part in self._parts:
            for group in part.param_groups:
                group["lr"] = lr * group["lr_scale"]
            part.step()

    def zero_grad(self) -> None:
        for part in self._parts:
            part.zero_grad()

    def state(self) -> dict[str, Tensor]:
        """The moments by "<parameter>/<name>"; a parameter that no batch has reached has none."""
        states = {id(p): values for part in self._parts for p, values in part.state.items()}
        return {
            f"{name}/{key}": value
            for name, parameter in self._trained.items()
            for key, value in states.get(id(parameter), {}).items()
        }

    def make_state(self, keys: Iterable[str]) -> None:
        """Makes the moments of these keys of `state`, for a checkpoint to be loaded into."""
        owner = {id(p): part for part in self._parts for group in part.param_groups for p in group["params"]}
        for key in keys:
            name, _, moment = key.rpartition("/")
            parameter = self._trained[name]
            made = torch.zeros((), device=parameter.device) if moment == "step" else torch.zeros_like(parameter)
            owner[id(parameter)].state[parameter][moment] = made.detach()


def learning_rate(step: int, steps: int, peak: float, warmup: int) -> float:
    """Linear to `peak` over `warmup` steps, then a cosine to a twentieth of it at `steps`."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, steps - warmup))
    return peak * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress)))


class Ema:
    """Exponential moving average of the trainable weights; young averages forget faster. A decay of 0 keeps none."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad and decay]
        self.weights: dict[str, Tensor] = {n: p.detach().clone() for n, p in trained}

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        raw = dict(model.named_parameters())
        if self.weights:
            torch._foreach_lerp_(list(self.weights.values()), [raw[n].detach() for n in self.weights], 1 - decay)

    @torch.no_grad()
    def swap(self, model: nn.Module) -> None:
        """Exchanges the model's weights with the average; a second call undoes it."""
        raw = dict(model.named_parameters())
        for name, average in self.weights.items():
            held = raw[name].detach().clone()
            raw[name].copy_(average)
            self.weights[name] = held
