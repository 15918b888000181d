"""Low-rank adapters of a backbone (LoRA: Hu et al. 2021, arXiv 2106.09685); what is saved is merged."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from vla.errors import InputError
from vla.models.vla import VLA

ALL = "all-linear"
ROWS = "new_rows"


def adapt(model: VLA, rank: int = 16, alpha: int = 32, targets: Sequence[str] | str = ALL, **other: Any) -> None:
    """Freezes the backbone, and adapts its layers (`inject`).

    Rows of the vocabulary that came with the action head train too (`train_rows`). Raises InputError for an option that
    there is not, and for a target that the backbone does not have.
    """
    if other:
        raise InputError(f"lora takes rank, alpha and targets, not {', '.join(other)}")
    inject(model.backbone, rank, alpha, targets)
    train_rows(model)


def inject(backbone: Any, rank: int, alpha: int, targets: Sequence[str] | str = ALL) -> None:
    """Gives linear layers of a `Backbone`, which is frozen, adapters of `rank`: they add alpha / rank B A x with B = 0
    at the start.

    `targets` is as in peft: "all-linear", of vision, connector and language model (as OpenVLA is fine-tuned: Kim et al.
    2024, arXiv 2406.09246, sec. 5.3); a list of the ends of names (q_proj, self_attn.q_proj); or a regular expression
    of whole names, which begin with vision, connector or language. The tables of the vocabulary are never adapted, nor
    what torch's own attention layers are made of, which they read past an adapter.
    """
    if rank < 1 or alpha < 1:
        raise InputError(f"lora takes a rank and an alpha of 1 or more, not {rank} and {alpha}")
    linear = _linear(backbone)
    chosen = [linear[name] for name in _chosen(list(linear), targets)]
    from peft import LoraConfig, inject_adapter_in_model

    backbone.requires_grad_(False)
    pattern = "|".join(map(re.escape, chosen))
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha, target_modules=pattern), backbone)


def _linear(backbone: Any) -> dict[str, str]:
    """The linear layers by their name in a part (as in `plan.freeze`), and what each is called in the backbone."""
    whole = [m for m in backbone.modules() if isinstance(m, (nn.MultiheadAttention, nn.TransformerEncoderLayer))]
    without = {inner for m in (*whole, *_row_modules(backbone)) for inner in m.modules()}
    called = {module: name for name, module in backbone.named_modules() if module not in without}
    return {
        f"{part}.{name}": called[module]
        for part, parent in backbone.freezable_modules().items()
        for name, module in parent.named_modules()
        if isinstance(module, nn.Linear) and module in called and not without & {*module.modules()}
    }


def _chosen(names: Sequence[str], targets: Sequence[str] | str) -> list[str]:
    if targets == ALL:
        return list(names)
    if isinstance(targets, str):
        try:
            found = [name for name in names if re.fullmatch(targets, name)]
        except re.error as error:
            raise InputError(f"lora.targets {targets} is no regular expression: {error}") from error
        if found:
            return found
        raise InputError(
            f"lora.targets {targets} matches no linear layer: give {ALL}, a list of names, or a regular expression of "
            f"whole names such as {names[0]}"
        )
    ends = {target: [n for n in names if n == target or n.endswith(f".{target}")] for target in targets}
    if unknown := sorted(target for target, found in ends.items() if not found):
        kinds = sorted({name.rpartition(".")[2] for name in names})
        raise InputError(f"the backbone has no linear layers {', '.join(unknown)}: choose of {kinds}")
    return [name for name in names if any(name in found for found in ends.values())]


def train_rows(model: VLA) -> None:
    """Trains rows of the vocabulary that came with the action head, where the tables that hold them stay as they are,
    as what is added to them: the tables, up to half a billion weights, need neither a gradient nor moments."""
    tables = [table for table in _row_modules(model.backbone) if not table.weight.requires_grad]
    if count := model.backbone.vocab_size - model.text_vocab:
        _train_rows([table for table in tables if not hasattr(table, ROWS)], count)
        for table in tables:
            table.new_rows.requires_grad_(True)


def _row_modules(backbone: Any) -> list[Any]:
    """The embedding and the output layer that hold the last rows of the vocabulary."""
    weights = backbone.vocab_weights()
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
