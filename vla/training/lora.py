"""Low-rank adapters of a backbone (LoRA: Hu et al. 2021, arXiv 2106.09685); saved weights are merged."""

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
    """Freezes the backbone and adds adapters to its layers (`inject`).

    The token embeddings of the action head are trained too (`train_rows`).

    Raises:
        InputError: an option is unknown, or the backbone does not have a target.
    """
    if other:
        raise InputError(f"lora takes rank, alpha and targets, not {', '.join(other)}")
    inject(model.backbone, rank, alpha, targets)
    train_rows(model)


def inject(backbone: Any, rank: int, alpha: int, targets: Sequence[str] | str = ALL) -> None:
    """Freezes a `Backbone` and adds adapters to linear layers: alpha / rank B A x, with B = 0 at the start.

    The embedding and output layers are never adapted, nor the linear layers inside torch's attention modules, which
    bypass an adapter.

    Args:
        backbone: The backbone.
        rank: The rank of the adapters.
        alpha: The scale of the adapters.
        targets: As in peft: "all-linear" of vision, connector and language model (as OpenVLA is fine-tuned: Kim et al.
            2024, arXiv 2406.09246, sec. 5.3), a list of name suffixes (q_proj, self_attn.q_proj), or a regular
            expression for full names, which begin with vision, connector or language.
    """
    if rank < 1 or alpha < 1:
        raise InputError(f"lora takes a rank and an alpha of 1 or more, not {rank} and {alpha}")
    linear = _linear(backbone)
    selected = [linear[name] for name in _select(list(linear), targets)]
    from peft import LoraConfig, inject_adapter_in_model

    backbone.requires_grad_(False)
    pattern = "|".join(map(re.escape, selected))
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha, target_modules=pattern), backbone)


def _linear(backbone: Any) -> dict[str, str]:
    """The names of the linear layers in the backbone, by their names in a part (as in `plan.freeze`)."""
    fused = [m for m in backbone.modules() if isinstance(m, (nn.MultiheadAttention, nn.TransformerEncoderLayer))]
    excluded = {inner for m in (*fused, *_row_modules(backbone)) for inner in m.modules()}
    names = {module: name for name, module in backbone.named_modules() if module not in excluded}
    return {
        f"{part}.{name}": names[module]
        for part, parent in backbone.freezable_modules().items()
        for name, module in parent.named_modules()
        if isinstance(module, nn.Linear) and module in names and not excluded & {*module.modules()}
    }


def _select(names: Sequence[str], targets: Sequence[str] | str) -> list[str]:
    if targets == ALL:
        return list(names)
    if isinstance(targets, str):
        try:
            found = [name for name in names if re.fullmatch(targets, name)]
        except re.error as error:
            raise InputError(f"lora.targets {targets} is not a regular expression: {error}") from error
        if found:
            return found
        raise InputError(
            f"lora.targets {targets} matches no linear layer: set {ALL}, a list of names, or a regular expression of "
            f"full names such as {names[0]}"
        )
    ends = {target: [n for n in names if n == target or n.endswith(f".{target}")] for target in targets}
    if unknown := sorted(target for target, found in ends.items() if not found):
        kinds = sorted({name.rpartition(".")[2] for name in names})
        raise InputError(f"the backbone has no linear layers {', '.join(unknown)}: choose of {kinds}")
    return [name for name in names if any(name in found for found in ends.values())]


def train_rows(model: VLA) -> None:
    """Trains the token embeddings of the action head where the embedding tables are frozen, as an offset to them.

    The tables, up to half a billion weights, then need neither gradients nor optimizer moments.
    """
    tables = [table for table in _row_modules(model.backbone) if not table.weight.requires_grad]
    if count := model.backbone.vocab_size - model.text_vocab:
        _train_rows([table for table in tables if not hasattr(table, ROWS)], count)
        for table in tables:
            table.new_rows.requires_grad_(True)


def _row_modules(backbone: Any) -> list[Any]:
    """The embedding layer and the output layer."""
    weights = backbone.vocab_weights()
    return [m for m in backbone.modules() if any(getattr(m, "weight", None) is w for w in weights)]


def _train_rows(tables: Sequence[Any], count: int) -> None:
    added: dict[int, nn.Parameter] = {}
    for table in tables:
        # Tied matrices share the offsets as well.
        rows = added.setdefault(id(table.weight), nn.Parameter(torch.zeros_like(table.weight[-count:])))
        table.register_parameter(ROWS, rows)
        table.register_forward_hook(_add_embeddings if isinstance(table, nn.Embedding) else _add_logits)


def _add_embeddings(table: Any, args: tuple[Int[Tensor, "*b"]], out: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
    at = args[0] - (len(table.weight) - len(table.new_rows))
    added = F.embedding(at.clamp(min=0), table.new_rows) * getattr(table, "embed_scale", 1.0)
    return out + added.masked_fill(at[..., None] < 0, 0).to(out.dtype)


def _add_logits(table: Any, args: tuple[Float[Tensor, "*b d"]], out: Float[Tensor, "*b v"]) -> Float[Tensor, "*b v"]:
    first = out.shape[-1] - len(table.new_rows)
    return torch.cat([out[..., :first], out[..., first:] + F.linear(args[0], table.new_rows)], -1)


def merged(model: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Merges the adapters into `weights` of an adapted model: W + alpha / rank B A.

    Without adapters the weights are returned unchanged. The model is not modified.
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
