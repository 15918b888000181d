"""Muon and AdamW with decay on matrices only, warm-up and cosine, and a moving average of the weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vla.errors import InputError
from vla.model import VLA


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


class Optimizers:
    """Muon for the matrices of linear layers, AdamW for everything else (Jordan et al. 2024).

    On the nano backbone Muon leaves the plateau at which no word is bound to what it names after 160 steps;
    AdamW alone had not after 600. Groups carry `lr_scale`, which includes that of the backbone's part.
    """

    def __init__(self, model: VLA, weight_decay: float, lr_scales: Mapping[str, float]) -> None:
        named = model.backbone.parts()
        if unknown := set(lr_scales) - set(named):
            raise InputError(f"lr_scales names {sorted(unknown)}: the backbone's parts are {sorted(named)}")
        part_of = {id(p): name for name, part in named.items() for p in part.parameters()}
        language: Any = named["language"]
        head = language.get_output_embeddings()
        matrices = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear) and m is not head}
        groups: dict[tuple[bool, float, float], list[nn.Parameter]] = {}
        for parameter in model.parameters():
            if parameter.requires_grad:
                muon, decay = id(parameter) in matrices, weight_decay if parameter.ndim > 1 else 0.0
                scale = lr_scales.get(part_of.get(id(parameter), ""), 1.0) * (MUON_LR if muon else 1.0)
                groups.setdefault((muon, scale, decay), []).append(parameter)
        kinds: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
        for (muon, scale, decay), parameters in groups.items():
            kinds[muon].append({"params": parameters, "weight_decay": decay, "lr_scale": scale})
        self._parts: list[torch.optim.Optimizer] = []
        if kinds[True]:
            self._parts.append(torch.optim.Muon(kinds[True], adjust_lr_fn="match_rms_adamw"))
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
        """The moments by "<optimizer>/<parameter>/<name>", as `load_state` takes them."""
        return {
            f"{i}/{j}/{name}": value
            for i, part in enumerate(self._parts)
            for j, values in part.state_dict()["state"].items()
            for name, value in values.items()
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Raises InputError when the moments are of other parameters. One that no batch reached has none."""
        loaded: list[dict[int, dict[str, Tensor]]] = [{} for _ in self._parts]
        for key, value in state.items():
            i, j, name = key.split("/")
            if int(i) >= len(loaded):
                raise InputError("it was trained with other frozen parts")
            loaded[int(i)].setdefault(int(j), {})[name] = value
        for part, values in zip(self._parts, loaded, strict=True):
            trained = dict(enumerate(p for group in part.param_groups for p in group["params"]))
            for index, moments in values.items():
                if index not in trained or any(m.ndim and m.shape != trained[index].shape for m in moments.values()):
                    raise InputError("it was trained with other frozen parts")
            part.load_state_dict({"state": values, "param_groups": part.state_dict()["param_groups"]})


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
