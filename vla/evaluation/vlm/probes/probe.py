"""Runs a probe on a model, with the images and with blank images as a baseline."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import batched
from typing import Any

import numpy as np
from jaxtyping import UInt8
from tqdm import tqdm

from vla.datasets.questions import MAIN_CAMERA
from vla.evaluation.vlm.answerer import ROWS, Answerer
from vla.evaluation.vlm.scoring.benchmark import Benchmark, Draws, scored
from vla.evaluation.vlm.scoring.files import Answers, Entry
from vla.evaluation.vlm.vqa import Case

WORST = 8
"""The number of worst cases in a report."""


@dataclass(frozen=True)
class ProbeResult:
    """The result of a probe.

    Attributes:
        report: The report of `Benchmark.score`, the main score first.
        drawn: The bootstrap samples of the scores.
        blank: The scores with blank images.
        worst: The cases with the largest errors.
    """

    report: Mapping[str, Any]
    drawn: Draws
    blank: Mapping[str, float]
    worst: tuple[Case, ...] = ()

    @property
    def main(self) -> tuple[str, float]:
        """The name and the value of the main score."""
        name = next(iter(self.report["scores"]))
        return name, float(self.report["scores"][name]["value"])


@dataclass(frozen=True)
class Probe:
    """A probe.

    Attributes:
        entries: `entries(n, seed)` makes the questions of n scenes, with the fields image, question and answer (text).
        benchmark: Scores the answers.
        error: The error of an answer; 0 if it is correct.
        tokens: The maximum number of tokens of an answer.
        role: The system prompt of a hosted model.
    """

    entries: Callable[[int, int], Mapping[str, Entry]]
    benchmark: Benchmark
    error: Callable[[Entry, str], float]
    tokens: int = 8
    role: str = "vqa"

    def __call__(self, answerer: Answerer, n: int, seed: int, baseline: bool = True) -> ProbeResult:
        """Runs the probe on n scenes; `baseline` adds the scores with blank images."""
        entries = self.entries(n, seed)
        predictions = self._answers(answerer, entries)
        report, drawn = scored(self.benchmark.judged(entries, predictions), self.benchmark.rates)
        errors = {i: self.error(entry, predictions[i]) for i, entry in entries.items()}
        # The same question about an image may occur in several categories.
        unique = {(entry["image"].tobytes(), entry["question"]): i for i, entry in entries.items()}
        worst = sorted((i for i in unique.values() if errors[i] > 0), key=lambda i: -errors[i])[:WORST]
        cases = tuple(
            Case(entries[i]["image"], entries[i]["question"], predictions[i], entries[i]["answer"]) for i in worst
        )
        blank_scores = self._blank(answerer, entries) if baseline else {}
        return ProbeResult(report, drawn, blank_scores, cases)

    def _answers(self, answerer: Answerer, entries: Mapping[str, Entry]) -> dict[str, str]:
        predictions: dict[str, str] = {}
        with tqdm(total=len(entries), leave=False, unit="question") as bar:
            for group in batched(entries.items(), ROWS):
                images = [{MAIN_CAMERA: entry["image"]} for _, entry in group]
                prompts = [self.benchmark.prompt(entry) for _, entry in group]
                found = answerer(prompts, images, self.tokens, self.role)
                predictions |= {i: text for (i, _), text in zip(group, found, strict=True)}
                bar.update(len(group))
        return predictions

    def _blank(self, answerer: Answerer, entries: Mapping[str, Entry]) -> dict[str, float]:
        """The scores with blank images; each question is answered once, as all blank images are equal."""
        unique = {entry["question"]: dict(entry) | {"image": blank(entry["image"])} for entry in entries.values()}
        answers = self._answers(answerer, unique)
        predictions: Answers = {i: answers[entry["question"]] for i, entry in entries.items()}
        scores = self.benchmark.score(entries, predictions)["scores"]
        return {name: float(found["value"]) for name, found in scores.items()}


def blank(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """A gray image of the same size."""
    return np.full_like(image, 128)


def by_unit(entries: Mapping[str, Entry]) -> dict[tuple[str, ...], dict[str, str]]:
    """Groups ids <unit>/<kind> by unit: the id of each kind."""
    found: dict[tuple[str, ...], dict[str, str]] = {}
    for i in entries:
        *unit, kind = i.split("/")
        found.setdefault(tuple(unit), {})[kind] = i
    return found
