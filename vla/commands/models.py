"""`vla models`: lists the families of vision-language models, and released robot policies."""

from __future__ import annotations

from collections.abc import Sequence

from vla.models.backbones import catalog
from vla.models.backbones.catalog import PARAMETERS, Family
from vla.models.released.catalog import RELEASED, Released

HINT = "`vla models family=NAME` shows details; a local folder can replace the id of a checkpoint."
BF16_BYTES = 2
TRAINED_BYTES = 20
"""Bytes of a trained parameter: float32 weight, gradient, two AdamW moments and the moving average."""
LORA_BYTES = 4
"""Bytes of a parameter that LoRA adapts: the float32 weight. The adapters are small."""


def models(*, family: str | None) -> None:
    """Prints the tables of all families and policies, or the details of one. Raises InputError for an unknown one."""
    if not family:
        print(f"{table(catalog.CATALOG)}\n\n{policies(RELEASED)}\n\n{HINT}")
        return
    policy = next((row for row in RELEASED if row.name == family), None)
    print(one(catalog.family(family)) if policy is None else one_policy(policy))


def table(rows: Sequence[Family]) -> str:
    """The table as text, with one line per family."""
    head = ("family", "role", "connector", "checkpoint", "parameters", "bf16", "equal to the original", "freezes")
    lines = [
        head,
        *((r.name, r.role, r.connector, _checkpoint(r), *_size(r), _checked(r), _freezes(r)) for r in rows),
    ]
    return _aligned(lines)


def policies(rows: Sequence[Released]) -> str:
    """The table of robot policies as text, with one line per policy."""
    head = ("robot policy", "checkpoint", "parameters", "to run", "LoRA", "full", "horizon", "cameras", "licence")
    cells = [(r.name, r.checkpoint, _billions(r.parameters), *_policy_memory(r), f"{r.horizon}") for r in rows]
    return _aligned([head, *((*cell, r.cameras, r.licence) for cell, r in zip(cells, rows, strict=True))])


def one_policy(row: Released) -> str:
    """The details of one robot policy."""
    run, lora, full = _policy_memory(row)
    fields = {
        "policy": row.name,
        "checkpoint": row.checkpoint,
        "size": f"{_billions(row.parameters)} parameters",
        "memory": f"{run} to run in bf16; {lora} to train by LoRA, {full} to train all weights, besides activations",
        "trained on": row.trained_on,
        "actions": f"{row.action}; chunks of {row.horizon} steps",
        "cameras": row.cameras,
        "licence": row.licence,
        "verified": f"{row.verified} (tests/{row.test})",
        "train": f"vla train backbone={row.checkpoint} data=DATA.zarr",
        "run": f"vla eval policy=hub:{row.checkpoint}; a base without statistics must be trained first",
    }
    return "\n".join(f"{name:<11}{value}" for name, value in fields.items())


def _billions(count: float) -> str:
    return f"{count / 1e9:.3g} B"


def _policy_memory(row: Released) -> tuple[str, str, str]:
    """Memory to run a policy, to train it by LoRA, and to train all of its weights."""
    run, lora, full = (f"{size * row.parameters / 1e9:.2g} GB" for size in (BF16_BYTES, LORA_BYTES, TRAINED_BYTES))
    return run, lora, full


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
    return "\n".join(line.rstrip() for line in padded)


def one(row: Family) -> str:
    """The details of one family, with its configuration."""
    fields = {
        "family": f"{row.name} ({row.title})",
        "role": row.role,
        "connector": row.connector,
        "checkpoint": _checkpoint(row),
        "size": f"{_size(row)[0]} parameters" if row.name in PARAMETERS else "",
        "memory": _memory(row),
        "convert": row.source,
        "freezes": f"{_freezes(row)} (finetune); all but the connector (align)" if row.role == "backbone" else "",
        "equal": f"{_checked(row)}: compared with the original" if row.checked else "",
        "verified": f"{row.verified} (tests/{row.test})" if row.test else "nothing yet",
        "load": row.load,
        "config": row.config_path,
    }
    lines = [f"{name:<11}{value}" for name, value in fields.items() if value]
    values = row.config().items()
    return "\n".join([*lines, *(f"{'':<13}{key}: {'null' if value is None else value}" for key, value in values)])


def _checkpoint(row: Family) -> str:
    config = row.config()
    return str(config["model"] if row.role == "hosted" else config["checkpoint"] or "-")


def _size(row: Family) -> tuple[str, str]:
    """The number of parameters, and the memory of the weights in bfloat16."""
    count = PARAMETERS.get(row.name)
    if count is None:
        return "-", "-"
    return f"{count / 1e9:.3g} B" if count >= 1e8 else f"{count / 1e6:.3g} M", f"{BF16_BYTES * count / 1e9:.2g} GB"


def _memory(row: Family) -> str:
    """The memory to run a family and to train all of its weights, without activations."""
    count = PARAMETERS.get(row.name)
    if count is None or row.role != "backbone":
        return ""
    run, train = (f"{size * count / 1e9:.2g} GB" for size in (BF16_BYTES, TRAINED_BYTES))
    return f"{run} to run in bf16; {train} to train all weights, besides activations (`vla bench memory`)"


def _checked(row: Family) -> str:
    return ", ".join(row.checked) or "-"


def _freezes(row: Family) -> str:
    return "-" if row.role == "hosted" else ", ".join(row.freezes) or "nothing"
