"""What a probe is, and how a model is put to it: with the pictures, and with blank ones in their place."""

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

WORST = 8
"""Cases that are kept to look at."""


@dataclass(frozen=True)
class Case:
    image: UInt8[np.ndarray, "h w 3"]
    question: str
    said: str
    answer: str


@dataclass(frozen=True)
class Found:
    """`report` is that of `Benchmark.score`, the main score first; `drawn` are the draws of its bootstrap; `blank` are
    the scores without anything to see."""

    report: Mapping[str, Any]
    drawn: Draws
    blank: Mapping[str, float]
    worst: tuple[Case, ...] = ()

    @property
    def main(self) -> tuple[str, float]:
        name = next(iter(self.report["scores"]))
        return name, float(self.report["scores"][name]["value"])


@dataclass(frozen=True)
class Probe:
    """`entries(n, seed)` makes the questions of n scenes, each with the fields image, question and answer (as text).

    `error` says how wrong an answer is, 0 where it is right.
    """

    entries: Callable[[int, int], Mapping[str, Entry]]
    benchmark: Benchmark
    error: Callable[[Entry, str], float]
    tokens: int = 8
    role: str = "vqa"

    def __call__(self, answerer: Answerer, n: int, seed: int, baseline: bool = True) -> Found:
        """Without `baseline` nothing is asked of blank pictures."""
        entries = self.entries(n, seed)
        said = self._ask(answerer, entries)
        told, drawn = scored(self.benchmark.judged(entries, said), self.benchmark.rates)
        errors = {i: self.error(entry, said[i]) for i, entry in entries.items()}
        # A picture may be asked the same for several reasons.
        once = {(entry["image"].tobytes(), entry["question"]): i for i, entry in entries.items()}
        worst = sorted((i for i in once.values() if errors[i] > 0), key=lambda i: -errors[i])[:WORST]
        cases = tuple(Case(entries[i]["image"], entries[i]["question"], said[i], entries[i]["answer"]) for i in worst)
        unseen = self._blank(answerer, entries) if baseline else {}
        return Found(told, drawn, unseen, cases)

    def _ask(self, answerer: Answerer, entries: Mapping[str, Entry]) -> dict[str, str]:
        said: dict[str, str] = {}
        with tqdm(total=len(entries), leave=False, unit="question") as bar:
            for group in batched(entries.items(), ROWS):
                images = [{MAIN_CAMERA: entry["image"]} for _, entry in group]
                prompts = [self.benchmark.prompt(entry) for _, entry in group]
                found = answerer(prompts, images, self.tokens, self.role)
                said |= {i: text for (i, _), text in zip(group, found, strict=True)}
                bar.update(len(group))
        return said

    def _blank(self, answerer: Answerer, entries: Mapping[str, Entry]) -> dict[str, float]:
        """Each question is asked once: all blank pictures are alike."""
        once = {entry["question"]: dict(entry) | {"image": blank(entry["image"])} for entry in entries.values()}
        answers = self._ask(answerer, once)
        said: Answers = {i: answers[entry["question"]] for i, entry in entries.items()}
        scores = self.benchmark.score(entries, said)["scores"]
        return {name: float(found["value"]) for name, found in scores.items()}


def blank(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    return np.full_like(image, 128)


def by_unit(entries: Mapping[str, Entry]) -> dict[tuple[str, ...], dict[str, str]]:
    """The ids are <unit>/<kind>: those of each unit by kind."""
    found: dict[tuple[str, ...], dict[str, str]] = {}
    for i in entries:
        *unit, kind = i.split("/")
        found.setdefault(tuple(unit), {})[kind] = i
    return found
