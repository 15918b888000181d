"""The results of a benchmark, as text and JSON."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Target:
    """A measured value with its target. With `at_most` the target is an upper bound, otherwise a lower bound."""

    name: str
    value: float
    target: float
    at_most: bool = False

    @property
    def met(self) -> bool:
        """Whether the value reaches the target."""
        return self.value <= self.target if self.at_most else self.value >= self.target


@dataclass(frozen=True)
class Table:
    """Measurements of one run on one machine, with targets. Consecutive rows with the same columns form one table."""

    rows: Sequence[Mapping[str, Any]]
    targets: Sequence[Target]

    @property
    def device(self) -> str:
        """The machine: device name and number of CPU cores."""
        return f"{device_name()}, {os.cpu_count()} cores"

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        targets = [{k: v for k, v in asdict(t).items() if k != "at_most"} | {"met": t.met} for t in self.targets]
        return {"device": self.device, "rows": [dict(row) for row in self.rows], "targets": targets}

    def to_text(self) -> str:
        """The tables, and a line for each target."""
        lines = [line for columns, rows in groupby(self.rows, list) for line in _lines(columns, list(rows))]
        for target in self.targets:
            sign, verdict = ("<=", ">=")[not target.at_most], "met" if target.met else "NOT MET"
            lines.append(f"{target.name}: {_cell(target.value)} (target {sign} {_cell(target.target)}): {verdict}")
        return "\n".join((self.device, *(line.rstrip() for line in lines)))


def device_name() -> str:
    """The names of the GPU, if there is one, and of the CPU, as far as the operating system provides it."""
    return f"{_gpu()}cpu: {_processor()}"


def _gpu() -> str:
    import torch

    return f"gpu: {torch.cuda.get_device_name()}, " if torch.cuda.is_available() else ""


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return name


def _lines(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> list[str]:
    cells = [list(columns)] + [[_cell(row[c]) for c in columns] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    return ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) for line in cells]


def _cell(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
