"""The benchmarks by name."""

from __future__ import annotations

from vla.errors import InputError, suggestion
from vla.evaluation.vlm.scoring.benchmark import Benchmark
from vla.evaluation.vlm.scoring.chair import CHAIR
from vla.evaluation.vlm.scoring.choice import MMBENCH, SEED_BENCH
from vla.evaluation.vlm.scoring.mathvista import MATHVISTA
from vla.evaluation.vlm.scoring.mmmu import MMMU
from vla.evaluation.vlm.scoring.text import CHARTQA, DOCVQA, OCRBENCH
from vla.evaluation.vlm.scoring.vqa import TEXTVQA, VQAV2
from vla.evaluation.vlm.scoring.yesno import MME, POPE

BENCHMARKS: dict[str, Benchmark] = {
    "vqav2": VQAV2,
    "textvqa": TEXTVQA,
    "docvqa": DOCVQA,
    "chartqa": CHARTQA,
    "mme": MME,
    "mmbench": MMBENCH,
    "seed-bench": SEED_BENCH,
    "mmmu": MMMU,
    "mathvista": MATHVISTA,
    "ocrbench": OCRBENCH,
    "chair": CHAIR,
    "pope": POPE,
}


def benchmark(name: str) -> Benchmark:
    """The benchmark of this name. Raises InputError if it is unknown."""
    if name not in BENCHMARKS:
        known = ", ".join(BENCHMARKS)
        raise InputError(f"unknown benchmark {name!r}: choose from {known}{suggestion(name, BENCHMARKS)}")
    return BENCHMARKS[name]
