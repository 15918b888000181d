"""What a model must keep while it trains: its scores in benchmarks and probes, within margins of those at the start."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from vla.common.device import accelerator
from vla.errors import InputError
from vla.evaluation.vlm.answerer import BackboneAnswerer
from vla.evaluation.vlm.benchmark_run import Files
from vla.evaluation.vlm.probes.registry import LOWER, PROBES
from vla.evaluation.vlm.scoring.registry import BENCHMARKS
from vla.models.vla import VLA

Measure = Callable[[VLA], float]
SCENES, SEED = 50, 1
"""Of a probe, where n is not given."""
OPTIONS = ("margin", "n", "data")
LESS_IS_BETTER = (*LOWER, "chair")


class RegressionGates:
    """The measures by name, the margin of each, and what the model had before training.

    `wanted` has for each probe {margin, n}, for each benchmark {margin, data, n}, n being its scenes or questions.
    Raises InputError for what is neither, and for a benchmark whose files are not there.
    """

    def __init__(self, model: VLA, wanted: Mapping[str, Mapping[str, Any]]) -> None:
        self.margins, self.measures = dict[str, float](), dict[str, Measure]()
        for name, options in wanted.items():
            if "margin" not in options or options.keys() - set(OPTIONS):
                raise InputError(f"regression_gates.{name} takes {', '.join(OPTIONS)}, of which margin must be given")
            self.margins[name], self.measures[name] = _measure(name, **options)
        self.start = self._measured(model)

    def __call__(self, model: VLA) -> dict[str, float]:
        """Each measure, and "retention": how much of its margin the one that fell the most has left, below 0 where it
        fell further."""
        now = self._measured(model)
        sign = {name: -1 if name in LESS_IS_BETTER else 1 for name in now}
        left = [sign[name] * (now[name] - self.start[name]) + self.margins[name] for name in now]
        return now | ({"retention": min(left)} if left else {})

    def _measured(self, model: VLA) -> dict[str, float]:
        """On the GPU where there is one; the model comes back where and as it was."""
        before, training = model.device, model.training
        # A model that several ranks share is on its device already.
        if self.measures and before.type == "cpu":
            model.to(accelerator())
        model.eval()
        try:
            return {name: measure(model) for name, measure in self.measures.items()}
        finally:
            model.to(before).train(training)


def _measure(name: str, margin: float, n: int | None = None, data: str | None = None) -> tuple[float, Measure]:
    if margin < 0:
        raise InputError(f"regression_gates.{name}: the margin must be 0 or more, not {margin}")
    if name in PROBES:
        return margin, lambda model: PROBES[name](BackboneAnswerer(model), n or SCENES, SEED, baseline=False).main[1]
    if name not in BENCHMARKS:
        raise InputError(f"regression_gates.{name} is neither a probe ({', '.join(PROBES)}) nor a benchmark")
    if data is None:
        raise InputError(f"regression_gates.{name}: say where its official files are, as data")
    files = Files.open(name, Path(data), n)

    def run(model: VLA) -> float:
        scores = files.run(BackboneAnswerer(model))["scores"]
        return float(next(iter(scores.values()))["value"])

    return margin, run
