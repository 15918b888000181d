"""Muon and AdamW with weight decay on matrices only, gradient clipping, and a moving average of the weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from vla.errors import InputError
from vla.models.vla import VLA
from vla.training.distributed import full_tensor
from vla.training.lora import ROWS, train_rows
from vla.training.muon import Muon
from vla.training.train_config import Optimizer


def freeze(model: VLA, parts: tuple[str, ...]) -> None:
    """Freezes parts of the backbone: vision, connector, language, or a module of one of them.

    The token embeddings of the action head are still trained (`vla.training.lora.train_rows`).

    Raises:
        InputError: a part does not exist.
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
    """The error message for an unknown module, with the modules of its nearest existing parent."""
    message, parent = f"cannot freeze {name}: the backbone's parts are {parts}", name
    while parent and parent not in modules:
        parent = parent.rpartition(".")[0]
    children = [f"{parent}.{child}" for child, _ in modules[parent].named_children()] if parent else []
    return f"{message}, and {parent} has {', '.join(children) or 'no modules in it'}" if parent else message


MUON_LR = 2.0
"""Muon's learning rate relative to AdamW's, with updates scaled to AdamW's size (Moonlight, sec. 2.2)."""


HEAD = "head"
"""The key in `lr_multipliers` of everything that is not the backbone."""


class Optimizers:
    """Muon for the matrices of linear layers and AdamW for everything else (Jordan et al. 2024), or AdamW for all.

    On the nano backbone, Muon starts to associate words with objects after 160 steps; AdamW alone had not after 600.
    Parameter groups have an `lr_scale`, which includes the multiplier of the backbone's part.
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
        """The optimizer of each trained parameter."""
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
        self.parts: list[torch.optim.Optimizer] = []
        if kinds[True]:
            self.parts.append(Muon(kinds[True]))
        if kinds[False]:
            self.parts.append(torch.optim.AdamW(kinds[False], betas=(0.9, 0.98), fused=True))

    @torch.no_grad()
    def step(self, lr: float) -> None:
        before = [rows().clone() for rows, _ in self._rows]
        for optimizer in self.parts:
            for group in optimizer.param_groups:
                group["lr"] = lr * group["lr_scale"]
            optimizer.step()
        for old, (rows, factor) in zip(before, self._rows, strict=True):
            # An update, with weight decay, is proportional to the learning rate.
            rows().copy_(torch.lerp(old, rows(), factor))

    def zero_grad(self) -> None:
        for optimizer in self.parts:
            optimizer.zero_grad()

    def state(self) -> dict[str, Tensor]:
        """The moments by "<parameter>/<name>"; parameters without updates so far have none."""
        states = {id(p): values for optimizer in self.parts for p, values in optimizer.state.items()}
        return {
            f"{name}/{key}": value
            for name, parameter in self._trained.items()
            for key, value in states.get(id(parameter), {}).items()
        }

    def make_state(self, keys: Iterable[str]) -> None:
        """Allocates the moments of these keys of `state`, to load a checkpoint into them."""
        owner = {id(p): optim for optim in self.parts for group in optim.param_groups for p in group["params"]}
        for key in keys:
            name, _, moment = key.rpartition("/")
            parameter = self._trained[name]
            made = torch.zeros((), device=parameter.device) if moment == "step" else torch.zeros_like(parameter)
            owner[id(parameter)].state[parameter][moment] = made.detach()


def _new_rows(model: VLA, scale_of: Mapping[int, float], head: float) -> list[tuple[Callable[[], Tensor], float]]:
    """The action head's rows of each trained embedding table, and the ratio of the head's learning rate to the table's.

    Raises InputError if the table's learning rate is 0.
    """
    count = model.backbone.vocab_size - model.text_vocab
    tables = {id(weight): weight for weight in model.backbone.vocab_weights() if weight.requires_grad}
    if not count or all(scale_of[key] == head for key in tables):
        return []
    if 0.0 in (scale_of[key] for key in tables):
        raise InputError(
            "lr_multipliers of 0 also freezes the token embeddings of the action head: use plan.freeze=[language]"
        )
    return [(partial(_last, weight, count), head / scale_of[key]) for key, weight in tables.items()]


def _last(weight: Tensor, count: int) -> Tensor:
    """This rank's shard of the last `count` rows, without copying; ranks have equally many rows (FSDP2)."""
    local, first = weight.detach(), 0
    if isinstance(weight, DTensor):
        local = weight.to_local().detach()
        first = weight.device_mesh.get_local_rank() * -(-len(weight) // weight.device_mesh.size())
    return local[max(0, len(weight) - count - first) :]


def clip_gradients(model: VLA, limit: float, per_part: bool = False) -> float:
    """Clips the norm of the gradient, of all parameters or separately for vision, connector, language and the rest.

    Returns:
        The norm of the full gradient before clipping.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [trained]
    if per_part:
        part_of = {id(p): name for name, part in model.backbone.freezable_modules().items() for p in part.parameters()}
        by_part: dict[str, list[nn.Parameter]] = {}
        for parameter in trained:
            by_part.setdefault(part_of.get(id(parameter), HEAD), []).append(parameter)
        groups = list(by_part.values())
    norms = [float(full_tensor(torch.nn.utils.clip_grad_norm_(group, limit))) for group in groups]
    return math.hypot(*norms)


class Ema:
    """Exponential moving average of the trainable weights, with a smaller decay in the first steps; off at decay 0."""

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

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """A context in which the model has the averaged weights."""
        self.swap(model)
        try:
            yield
        finally:
            self.swap(model)
