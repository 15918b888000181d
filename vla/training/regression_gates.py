"""Regression gates: scores in benchmarks and probes that must stay within margins of their values before training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vla.common.device import accelerator
from vla.evaluation.vlm.answerer import BackboneAnswerer
from vla.evaluation.vlm.benchmark_run import Files
from vla.evaluation.vlm.probes.registry import LOWER, PROBES
from vla.models.vla import VLA
from vla.training.run_options import check_gates

Measure = Callable[[VLA], float]
SCENES, SEED = 50, 1
"""Default number of scenes, and the seed, of a probe."""
LESS_IS_BETTER = (*LOWER, "chair")


class RegressionGates:
    """Measures a model, and compares it with its scores before training.

    Args:
        model: The model before training.
        gates: By name, {margin, n} of a probe or {margin, data, n} of a benchmark; n is the number of scenes or
            questions.

    Raises:
        InputError: a name is neither a probe nor a benchmark, or the files of a benchmark are missing.
    """

    def __init__(self, model: VLA, gates: Mapping[str, Mapping[str, Any]]) -> None:
        self.margins, self.measures = dict[str, float](), dict[str, Measure]()
        check_gates(gates)
        for name, options in gates.items():
            self.margins[name], self.measures[name] = _measure(name, **options)
        self.start = self._scores(model)

    def __call__(self, model: VLA) -> dict[str, float]:
        """All scores, and "retention": the smallest remaining margin, which is negative if a score fell below it."""
        now = self._scores(model)
        sign = {name: -1 if name in LESS_IS_BETTER else 1 for name in now}
        remaining = [sign[name] * (now[name] - self.start[name]) + self.margins[name] for name in now]
        return now | ({"retention": min(remaining)} if remaining else {})

    def _scores(self, model: VLA) -> dict[str, float]:
        """Measures on a GPU if available, and restores the model's device and mode."""
        before, training = model.device, model.training
        # A sharded model is on its device already.
        if self.measures and before.type == "cpu":
            model.to(accelerator())
        model.eval()
        try:
            return {name: measure(model) for name, measure in self.measures.items()}
        finally:
            model.to(before).train(training)


def _measure(name: str, margin: float, n: int | None = None, data: str | None = None) -> tuple[float, Measure]:
    if name in PROBES:
        return margin, lambda model: PROBES[name](BackboneAnswerer(model), n or SCENES, SEED, baseline=False).main[1]
    assert data is not None  # checked with the other options
    files = Files.open(name, Path(data), n)

    def run(model: VLA) -> float:
        scores = files.run(BackboneAnswerer(model))["scores"]
        return float(next(iter(scores.values()))["value"])

    return margin, run
