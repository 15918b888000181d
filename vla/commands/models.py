"""`vla models`: lists the families of vision-language models."""

from __future__ import annotations

from collections.abc import Sequence

from vla.models.backbones import catalog
from vla.models.backbones.catalog import PARAMETERS, Family

BF16_BYTES = 2
TRAINED_BYTES = 20
"""Bytes of a trained parameter: float32 weight, gradient, two AdamW moments and the moving average."""


def models(*, family: str | None) -> None:
    """Prints the table of all families, or the details of one. Raises InputError for an unknown family."""
    print(one(catalog.family(family)) if family else table(catalog.CATALOG))


def table(rows: Sequence[Family]) -> str:
    """The table as text, with one line per family."""
    head = ("family", "role", "connector", "checkpoint", "parameters", "bf16", "equal to the original", "freezes")
    lines = [
        head,
        *((r.name, r.role, r.connector, _checkpoint(r), *_size(r), _checked(r), _freezes(r)) for r in rows),
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
    text = "\n".join(line.rstrip() for line in padded)
    return f"{text}\n\n`vla models family=NAME` shows details; a local folder can replace the id of a checkpoint."


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
