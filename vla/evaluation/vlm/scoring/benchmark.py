"""Benchmarks, and their scores with bootstrap intervals.

Every score is a function of sums over independent units (questions, or images that several questions share), so that a
bootstrap (Efron 1979) resamples units and adds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from vla.errors import InputError
from vla.evaluation.vlm.scoring.answered import is_empty
from vla.evaluation.vlm.scoring.files import Answers, Entry, answers, entries

RESAMPLES = 1000


@dataclass(frozen=True)
class Unit:
    """A unit of the bootstrap: its summands, and the (kind, name) of each of its categories."""

    sums: tuple[float, ...]
    groups: tuple[tuple[str, str], ...] = ()


type Units = Callable[[Mapping[str, Entry], Answers], list[Unit]]
type Draws = Mapping[str, Float[np.ndarray, " r"]]
type Rates = Callable[[Float[np.ndarray, "k d"]], dict[str, Float[np.ndarray, " k"]]]


@dataclass(frozen=True)
class Benchmark:
    """A benchmark.

    Attributes:
        units: Judges answers.
        rates: Computes scores from summed units, the main score first.
        prompt: The prompt of an entry.
        entries: Reads the references.
        answers: Reads a result file.
        part: Whether a result file may have answers to only some of the questions.
        truth: The fields of the references with the correct answer.
    """

    units: Units
    rates: Rates
    prompt: Callable[[Entry], str]
    entries: Callable[[Path], dict[str, Entry]] = entries
    answers: Callable[[Path, Mapping[str, Entry]], dict[str, str]] = answers
    part: bool = False
    truth: tuple[str, ...] = ()

    def score(self, questions: Mapping[str, Entry], predictions: Answers) -> dict[str, Any]:
        """Scores answers.

        Returns:
            {units, unanswered, scores: {name: {value, ci95}}, categories: [{kind, name, units, <main score>}]}, where
            `unanswered` counts empty answers, which are always wrong.

        Raises:
            InputError: a question has no answer, an answer has no question, or the references lack a field or the
                correct answers.
        """
        empty = sum(map(is_empty, predictions.values()))
        return report(self.judged(questions, predictions), self.rates) | {"unanswered": empty}

    def judged(self, questions: Mapping[str, Entry], predictions: Answers) -> list[Unit]:
        """The units in order of question ids, independent of the order in the files. Raises as `score`."""
        missing, unknown = (
            [i for i in questions if i not in predictions],
            [i for i in predictions if i not in questions],
        )
        if unknown:
            raise InputError(f"{len(unknown)} answers are to questions not in the references, the first {unknown[0]!r}")
        if missing and not self.part:
            raise InputError(f"{len(missing)} of {len(questions)} questions have no answer, the first {missing[0]!r}")
        for i in predictions if self.truth else ():
            held = [questions[i][key] for key in self.truth if key in questions[i]]
            if not held:
                fields = " or ".join(map(repr, self.truth))
                raise InputError(f"the references have no field {fields}: are they of this benchmark?")
            if not any(map(_has_answer, held)):
                raise InputError(f"question {i!r} has no answer in the references: use a split with answers")
        try:
            return self.units({i: questions[i] for i in sorted(predictions)}, predictions)
        except KeyError as error:
            raise InputError(f"the references have no field {error}: are they of this benchmark?") from error


def _has_answer(truth: object) -> bool:
    """Whether a field has a non-empty answer, or a list with one."""
    return any(map(_has_answer, truth)) if isinstance(truth, list) else truth not in (None, "")


def report(units: Sequence[Unit], rates: Rates) -> dict[str, Any]:
    """The report of these units (`Benchmark.score`)."""
    return scored(units, rates)[0]


def scored(units: Sequence[Unit], rates: Rates) -> tuple[dict[str, Any], Draws]:
    """The report of these units, and the bootstrap samples of each score.

    The resampled units do not depend on the answers: for two models on the same questions, the difference of their
    samples is a paired bootstrap.
    """
    sums = np.array([unit.sums for unit in units], dtype=float)
    groups: dict[tuple[str, str], list[int]] = {}
    for index, unit in enumerate(units):
        for group in dict.fromkeys(unit.groups):
            groups.setdefault(group, []).append(index)
    keys = sorted(groups)
    values = rates(np.stack([sums.sum(0), *(sums[groups[group]].sum(0) for group in keys)]))
    drawn = rates(resampled(sums))
    main = next(iter(values))
    summary = {
        "units": len(units),
        "scores": {k: {"value": float(v[0]), "ci95": interval(drawn[k])} for k, v in values.items()},
        "categories": [
            {"kind": kind, "name": name, "units": len(groups[kind, name]), main: float(values[main][index])}
            for index, (kind, name) in enumerate(keys, start=1)
        ],
    }
    return summary, drawn


def interval(drawn: Float[np.ndarray, " r"]) -> list[float]:
    """The central 95 % interval."""
    return [float(x) for x in np.quantile(drawn, (0.025, 0.975))]


def resampled(sums: Float[np.ndarray, "n d"], seed: int = 0) -> Float[np.ndarray, "r d"]:
    """The sums of `RESAMPLES` bootstrap resamples of the units."""
    rng, n = np.random.default_rng(seed), len(sums)
    return np.stack([np.bincount(rng.integers(n, size=n), minlength=n) @ sums for _ in range(RESAMPLES)])


def ratio(part: Float[np.ndarray, "*k"], total: Float[np.ndarray, "*k"]) -> Float[np.ndarray, "*k"]:
    """`part / total`, and 0 where the total is 0."""
    return np.divide(part, total, out=np.zeros_like(part), where=total != 0)


def mean(name: str) -> Rates:
    """The score of units whose sums are (score, 1)."""
    return lambda sums: {name: ratio(sums[:, 0], sums[:, 1])}


def per_question(judge: Callable[[Entry, str], float], *kinds: str) -> Units:
    """One unit per question; empty answers are wrong. `kinds` are the fields with the categories."""
    return lambda questions, predictions: [
        Unit((0.0 if is_empty(predictions[i]) else float(judge(entry, predictions[i])), 1.0), categories(entry, kinds))
        for i, entry in questions.items()
    ]


def categories(entry: Entry, kinds: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """The categories of an entry; a list has several."""
    found = ((kind, entry[kind]) for kind in kinds if entry.get(kind) not in (None, ""))
    return tuple((kind, str(one)) for kind, value in found for one in (value if isinstance(value, list) else [value]))


def question_prompt(suffix: str = "", field: str = "question") -> Callable[[Entry], str]:
    """A prompt function: the entry's question, in `field` or "question", and `suffix` on a separate line."""
    return lambda entry: "\n".join(part for part in (str(entry.get(field) or entry["question"]), suffix) if part)
