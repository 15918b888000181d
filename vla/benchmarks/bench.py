"""`vla bench NAME`: benchmarks of the performance-critical parts."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from vla.errors import InputError, suggestion

BENCHMARKS = {
    "env": "vla.benchmarks.env:bench_env",
    "loader": "vla.benchmarks.loader:bench_loader",
    "heads": "vla.benchmarks.heads:bench_heads",
    "rollout": "vla.benchmarks.rollout:bench_rollout",
    "train": "vla.benchmarks.train:bench_train",
    "memory": "vla.benchmarks.memory:bench_memory",
    "inference": "vla.benchmarks.inference:bench_inference",
    "ablation": "vla.benchmarks.ablation:bench_ablation",
    "control": "vla.benchmarks.control:bench_control",
    "doctor": "vla.benchmarks.doctor:bench_doctor",
    "gpu": "vla.benchmarks.gpu:bench_gpu",
    "forgetting": "vla.benchmarks.forgetting:bench_forgetting",
    "ee": "vla.benchmarks.end_effector:bench_end_effector",
}


def bench(*, name: str, json: str | None) -> None:
    """Prints the table of benchmark `name`, and writes it to the file `json` if set.

    Raises:
        InputError: the name is unknown.
    """
    if name not in BENCHMARKS:
        raise InputError(f"unknown benchmark {name!r}{suggestion(name, BENCHMARKS)}; known: {', '.join(BENCHMARKS)}")
    module, _, function = BENCHMARKS[name].partition(":")
    table = getattr(import_module(module), function)()
    print(table.to_text())
    if json is not None:
        from vla.common.atomic import write_json

        write_json(Path(json), table.to_dict())
