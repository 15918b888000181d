"""Compares the visual understanding of a model after each stage of a recipe: stages.json and report.html."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vla.common.atomic import write_json
from vla.common.html_page import write_page
from vla.common.plots import COLORS, GREY, legend, style, svg
from vla.common.stored_image import decoded
from vla.datasets.questions import KINDS
from vla.datasets.vqa import VqaStore
from vla.evaluation.heldout import SHORT, heldout_by_kind
from vla.evaluation.vlm.answerer import Answerer, open_answerer, weights_of
from vla.evaluation.vlm.probes.names import check_names
from vla.evaluation.vlm.probes.probe import ProbeResult
from vla.evaluation.vlm.probes.probe_report import write_probe_page
from vla.evaluation.vlm.probes.registry import LOWER, select_probes
from vla.evaluation.vlm.scoring.benchmark import Unit, interval, mean, scored
from vla.evaluation.vlm.vqa import score

if TYPE_CHECKING:
    from matplotlib.axes import Axes

QUESTIONS = 100
"""The number of held-out questions of each kind."""
START = "start"
DRAWS = "draws.npz"
"""The bootstrap samples of each score, in the folder of a stage."""


class StageReport:
    """The scores of a model after each stage, in probes (`vla probe`) and held-out short questions.

    Args:
        out: The folder of the run.
        scenes: The number of scenes by probe. The scenes are the same for all stages, and not from recordings.
        stores: The question stores by name.

    Raises:
        InputError: a probe does not exist.
    """

    def __init__(self, out: Path, scenes: Mapping[str, int], stores: Mapping[str, str]) -> None:
        check_names(scenes)
        self.out, self.scenes, self.stores, self.file = out, dict(scenes), stores, out / "stages.json"
        read = json.loads(self.file.read_text()) if self.file.exists() else {}
        same = read.get("scenes") == self.scenes and read.get("stores") == self.stores
        found = read.get("stages", {}) if same else {}
        self.stages: dict[str, dict[str, Any]] = {k: v for k, v in found.items() if (out / k / DRAWS).exists()}

    def add(self, stage: str, policy: str) -> None:
        """Measures the model `policy` (`open_answerer`) unless these weights were measured, and writes both files."""
        weights = weights_of(policy)
        if self.stages.get(stage, {}).get("weights", "") != weights:
            answerer = open_answerer(policy)
            found = {"vqa": held_out(answerer, self.stores)}
            probes = select_probes(list(self.scenes), answerer)
            found |= {name: run(answerer, self.scenes[name], 0) for name, run in probes.items()}
            write_probe_page(self.out / stage / "probes.html", f"after {stage}", found)
            samples = {f"{name}/{label}": draws for name, item in found.items() for label, draws in item.drawn.items()}
            np.savez(self.out / stage / DRAWS, allow_pickle=False, **samples)
            figures = {name: {**item.report, "blank": item.blank} for name, item in found.items()}
            self.stages[stage] = {"weights": weights, "probes": figures}
            for before, after in pairwise(self.stages):
                self._compare(before, after)
            write_json(self.file, {"scenes": self.scenes, "stores": self.stores, "stages": self.stages})
        print(self._write())

    def _compare(self, before: str, after: str) -> None:
        """Adds to each score of stage `after` its change from `before`, with a paired bootstrap interval."""
        with np.load(self.out / before / DRAWS) as first, np.load(self.out / after / DRAWS) as second:
            for name in second.keys() & first.keys():
                probe, label = name.split("/")
                was, now = (self.stages[stage]["probes"][probe]["scores"][label] for stage in (before, after))
                change = {"value": now["value"] - was["value"], "ci95": interval(second[name] - first[name])}
                now["change"] = change

    def _write(self) -> Path:
        return write_page(
            self.out / "report.html",
            "stages",
            "stages.html",
            questions=QUESTIONS,
            scenes=self.scenes,
            chart=svg((7, 4.2), self._paint),
            stages=self.stages,
            tables={probe: self._table(probe) for probe in self._probes()},
        )

    def _probes(self) -> list[str]:
        return list(dict.fromkeys(name for stage in self.stages.values() for name in stage["probes"]))

    def _table(self, probe: str) -> dict[str, list[Mapping[str, Any] | None]]:
        """The scores of the probe by label, in the order of the stages; None for a stage that lacks it."""
        stages = [stage["probes"].get(probe, {"scores": {}})["scores"] for stage in self.stages.values()]
        return {label: [scores.get(label) for scores in stages] for label in dict.fromkeys(chain.from_iterable(stages))}

    def _paint(self, axes: Axes) -> None:
        """The main score of each probe, with its interval, over the stages."""
        stages, probes = list(self.stages), self._probes()
        for index, (probe, color) in enumerate(zip(probes, (*COLORS, GREY), strict=False)):
            at = [i for i, name in enumerate(stages) if probe in self.stages[name]["probes"]]
            main = [next(iter(self.stages[stages[i]]["probes"][probe]["scores"].values())) for i in at]
            y = [one["value"] for one in main]
            low, high = ([abs(one["ci95"][side] - one["value"]) for one in main] for side in (0, 1))
            x = [i + 0.03 * (index - len(probes) / 2) for i in at]  # offset, so that intervals do not overlap
            name = f"{probe} (less is better)" if probe in LOWER else probe
            axes.errorbar(x, y, [low, high], color=color, marker="o", markersize=3.5, capsize=2, label=name)
        axes.set_xticks(range(len(stages)), stages)
        axes.set_ylim(bottom=0)
        style(axes, "", "")
        legend(axes)


def held_out(answerer: Answerer, stores: Mapping[str, str]) -> ProbeResult:
    """The accuracy of held-out short questions, computed as in training, with an interval."""
    units: list[Unit] = []
    for path in stores.values():
        for kind, examples in heldout_by_kind(VqaStore(path), QUESTIONS, KINDS).items():
            answers = answerer([e.prompt for e in examples], [decoded(e.images) for e in examples], SHORT, "vqa")
            right = [score(kind, answer, str(e.target)) for answer, e in zip(answers, examples, strict=True)]
            units += [Unit((one, 1.0), (("kind", kind),)) for one in right]
    return ProbeResult(*scored(units, mean("accuracy")), {})
