"""Low-rank adapters of a language model (LoRA: Hu et al. 2021, arXiv 2106.09685); what is saved is merged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from vla.errors import InputError
from vla.model import VLA

ALL = "all-linear"
ROWS = "new_rows"


def adapt(model: VLA, rank: int = 16, alpha: int = 32, targets: Sequence[str] | str = ALL, **other: Any) -> None:
    """Freezes the backbone, and adapts its language model (`inject`).

    Rows of the vocabulary that came with the action head train too, as what is added to them: the matrices that hold
    them, up to half a billion weights, need neither a gradient nor moments. Raises InputError for an option that there
    is not, and for a target that the language model does not have.
    """
    if other:
        raise InputError(f"lora takes rank, alpha and targets, not {', '.join(other)}")
    inject(model.backbone, rank, alpha, targets)
    if count := model.backbone.vocab_size - model.text_vocab:
        _train_rows(_row_modules(model.backbone), count)


def inject(backbone: Any, rank: int, alpha: int, targets: Sequence[str] | str = ALL) -> None:
    """Gives the linear layers `targets` of the language model of a `Backbone`, which is frozen, adapters of `rank`:
    they add alpha / rank B A x with B = 0 at the start. "all-linear" are all but the output's."""
    if rank < 1 or alpha < 1:
        raise InputError(f"lora takes a rank and an alpha of 1 or more, not {rank} and {alpha}")
    language, tables = backbone.parts()["language"], {*_row_modules(backbone)}
    linear = [n for n, m in language.named_modules() if isinstance(m, nn.Linear) and not tables & {*m.modules()}]
    kinds = {name.rpartition(".")[2] for name in linear}
    if isinstance(targets, str) and targets != ALL:
        raise InputError(f"lora.targets is {ALL} or a list of names, not {targets}")
    if unknown := ([] if targets == ALL else sorted(set(targets) - kinds)):
        raise InputError(f"the language model has no linear layers {', '.join(unknown)}: choose of {sorted(kinds)}")
    from peft import LoraConfig, inject_adapter_in_model

    backbone.requires_grad_(False)
    chosen = [name for name in linear if targets == ALL or name.rpartition(".")[2] in targets]
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha, target_modules=chosen), language)


def _row_modules(backbone: Any) -> list[Any]:
    """The embedding and the output layer that hold the last rows of the vocabulary."""
    weights = backbone.row_weights()
    return [m for m in backbone.modules() if any(getattr(m, "weight", None) is w for w in weights)]


def _train_rows(tables: Sequence[Any], count: int) -> None:
    added: dict[int, nn.Parameter] = {}
    for table in tables:
        # Tied matrices have the same rows, new ones too.
        rows = added.setdefault(id(table.weight), nn.Parameter(torch.zeros_like(table.weight[-count:])))
        table.register_parameter(ROWS, rows)
        table.register_forward_hook(_embedded if isinstance(table, nn.Embedding) else _said)


def _embedded(table: Any, args: tuple[Int[Tensor, "*b"]], out: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
    at = args[0] - (len(table.weight) - len(table.new_rows))
    added = F.embedding(at.clamp(min=0), table.new_rows) * getattr(table, "embed_scale", 1.0)
    return out + added.masked_fill(at[..., None] < 0, 0).to(out.dtype)


def _said(table: Any, args: tuple[Float[Tensor, "*b d"]], out: Float[Tensor, "*b v"]) -> Float[Tensor, "*b v"]:
    first = out.shape[-1] - len(table.new_rows)
    return torch.cat([out[..., :first], out[..., first:] + F.linear(args[0], table.new_rows)], -1)


def merged(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The `weights` of an adapted model, by name, as those of the model without adapters: W + alpha / rank B A.

    Of a model without adapters they are what they were. The model's own weights are not touched.
    """
    plain = {name.replace(".base_layer.", "."): w for name, w in weights.items() if ".lora_" not in name}
    for name, a in weights.items():
        path, adapter, _ = name.partition(".lora_A.")
        if adapter:
            b, layer = weights[name.replace(".lora_A.", ".lora_B.")], f"{path}.weight"
            scale: Any = model.get_submodule(path).scaling
            plain[layer] = plain[layer] + (scale["default"] * b @ a).to(plain[layer].dtype)
        if name.endswith(f".{ROWS}"):
            table = name.removesuffix(ROWS) + "weight"
            plain[table] = plain[table] + F.pad(plain.pop(name), (0, 0, len(plain[table]) - len(a), 0))
    return plain
