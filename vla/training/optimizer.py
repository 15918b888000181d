"""Muon and AdamW with decay on matrices only, clipping of the gradient, and a moving average of the weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from vla.errors import InputError
from vla.models.vla import VLA
from vla.training.distributed import whole
from vla.training.lora import ROWS, train_rows
from vla.training.muon import Muon
from vla.training.train_config import Optimizer


def freeze(model: VLA, parts: tuple[str, ...]) -> None:
    """Stops the gradient of parts of the backbone: vision, connector, language, or a module in one of them. Rows of the
    vocabulary that came with the action head still train (`vla.training.lora.train_rows`).

    Raises InputError for a name that there is not; it lists those that there are.
    """
    named = model.backbone.freezable_modules().items()
    modules = {f"{part}.{name}".rstrip("."): m for part, module in named for name, m in module.named_modules()}
    for name in parts:
        if name not in modules:
            raise InputError(_no_part(name, modules, sorted(model.backbone.freezable_modules())))
    for name in parts:
        modules[name].requires_grad_(False)
    if parts:
        train_rows(model)


def _no_part(name: str, modules: Mapping[str, nn.Module], parts: list[str]) -> str:
    """That there is no module of this name, and what there is where it was looked for."""
    said, above = f"cannot freeze {name}: the backbone's parts are {parts}", name
    while above and above not in modules:
        above = above.rpartition(".")[0]
    inside = [f"{above}.{child}" for child, _ in modules[above].named_children()] if above else []
    return f"{said}, and {above} has {', '.join(inside) or 'no modules in it'}" if above else said


MUON_LR = 2.0
"""Muon's learning rate in units of AdamW's, its updates scaled to the size of AdamW's (Moonlight, sec. 2.2)."""


HEAD = "head"
"""In `lr_multipliers`, everything that is not the backbone."""


class Optimizers:
    """Muon for the matrices of linear layers, AdamW for everything else (Jordan et al. 2024); or AdamW for all.

    On the nano backbone Muon leaves the plateau at which no word is bound to what it names after 160 steps;
    AdamW alone had not after 600. Groups carry `lr_scale`, which includes that of the backbone's part.
    """

    def __init__(
        self, model: VLA, weight_decay: float, lr_multipliers: Mapping[str, float], optimizer: Optimizer = "muon"
    ) -> None:
        named = model.backbone.freezable_modules()
        if unknown := set(lr_multipliers) - {*named, HEAD}:
            raise InputError(f"lr_multipliers names {sorted(unknown)}: there are {sorted(named)} and {HEAD}")
        part_of = {id(p): name for name, part in named.items() for p in part.parameters()}
        backbone = {id(p) for n, p in model.named_parameters() if n.startswith("backbone.")}
        matrices = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear)}
        matrices -= {id(weight) for weight in model.backbone.vocab_weights()}
        groups: dict[tuple[bool, float, float], list[nn.Parameter]] = {}
        self._trained: dict[str, nn.Parameter] = {n: p for n, p in model.named_parameters() if p.requires_grad}
        scale_of = {id(p): lr_multipliers.get(part_of.get(id(p), ""), 1.0) for p in model.backbone.vocab_weights()}
        self._rows = _new_rows(model, scale_of, lr_multipliers.get(HEAD, 1.0))
        self.kinds: dict[str, Optimizer] = {}
        """Which optimizer each trained parameter has."""
        for name, parameter in self._trained.items():
            muon, decay = optimizer == "muon" and id(parameter) in matrices, weight_decay if parameter.ndim > 1 else 0.0
            self.kinds[name] = "muon" if muon else "adamw"
            part = part_of.get(id(parameter), "" if id(parameter) in backbone else HEAD)
            part = HEAD if name.endswith(f".{ROWS}") else part
            scale = lr_multipliers.get(part, 1.0) * (MUON_LR if muon else 1.0)
            groups.setdefault((muon, scale, decay), []).append(parameter)
        kinds: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
        for (muon, scale, decay), parameters in groups.items():
            kinds[muon].append({"params": parameters, "weight_decay": decay, "lr_scale": scale})
        self._parts: list[torch.optim.Optimizer] = []
        if kinds[True]:
            self._parts.append(Muon(kinds[True]))
        if kinds[False]:
            self._parts.append(torch.optim.AdamW(kinds[False], betas=(0.9, 0.98), fused=True))

    @torch.no_grad()
    def step(self, lr: float) -> None:
        before = [rows().clone() for rows, _ in self._rows]
        for part in self._parts:
            for group in part.param_groups:
                group["lr"] = lr * group["lr_scale"]
            part.step()
        for old, (rows, times) in zip(before, self._rows, strict=True):
            # An update, decay included, is as long as the rate.
            rows().copy_(torch.lerp(old, rows(), times))

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


def _new_rows(model: VLA, scale_of: Mapping[int, float], head: float) -> list[tuple[Callable[[], Tensor], float]]:
    """Of each table that trains whole, the rows that came with the action head, and how many times the table's rate
    theirs is: the rate of the head. Raises InputError where the table has none."""
    count = model.backbone.vocab_size - model.text_vocab
    tables = {id(weight): weight for weight in model.backbone.vocab_weights() if weight.requires_grad}
    if not count or all(scale_of[at] == head for at in tables):
        return []
    if 0.0 in (scale_of[at] for at in tables):
        raise InputError(
            "lr_multipliers of 0 keeps the action head's rows of the vocabulary too: use plan.freeze=[language]"
        )
    return [(partial(_last, weight, count), head / scale_of[at]) for at, weight in tables.items()]


def _last(weight: Tensor, count: int) -> Tensor:
    """What this rank holds of the last `count` rows, as it lies in memory: ranks have as many rows each (FSDP2)."""
    local, first = weight.detach(), 0
    if isinstance(weight, DTensor):
        local = weight.to_local().detach()
        first = weight.device_mesh.get_local_rank() * -(-len(weight) // weight.device_mesh.size())
    return local[max(0, len(weight) - count - first) :]


def clip_gradients(model: VLA, most: float, each_part: bool = False) -> float:
    """Clips the norm of the gradient to `most`: that of all, or of each part (vision, connector, language, the rest) by
    itself. Returns that of all, before."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [trained]
    if each_part:
        part_of = {id(p): name for name, part in model.backbone.freezable_modules().items() for p in part.parameters()}
        by_part: dict[str, list[nn.Parameter]] = {}
        for parameter in trained:
            by_part.setdefault(part_of.get(id(parameter), HEAD), []).append(parameter)
        groups = list(by_part.values())
    norms = [float(whole(torch.nn.utils.clip_grad_norm_(group, most))) for group in groups]
    return math.hypot(*norms)


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
