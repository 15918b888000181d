"""What a benchmark is, and its scores with their bootstrap intervals.

Every score is a function of sums over independent units (questions; images where questions share one), so that a
bootstrap (Efron 1979) draws units again and adds.
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
    """What is drawn as one: what it adds to the sums, and the (kind, name) of each category it is in."""

    sums: tuple[float, ...]
    groups: tuple[tuple[str, str], ...] = ()


type Units = Callable[[Mapping[str, Entry], Answers], list[Unit]]
type Draws = Mapping[str, Float[np.ndarray, " r"]]
type Rates = Callable[[Float[np.ndarray, "k d"]], dict[str, Float[np.ndarray, " k"]]]


@dataclass(frozen=True)
class Benchmark:
    """`units` judges answers, `rates` makes scores of summed units, the main one first, and `prompt` asks an entry.

    `part` says that a result file may answer some of the questions only, `truth` in which fields the references have
    the right answer.
    """

    units: Units
    rates: Rates
    prompt: Callable[[Entry], str]
    entries: Callable[[Path], dict[str, Entry]] = entries
    answers: Callable[[Path, Mapping[str, Entry]], dict[str, str]] = answers
    part: bool = False
    truth: tuple[str, ...] = ()

    def score(self, questions: Mapping[str, Entry], said: Answers) -> dict[str, Any]:
        """{units, unanswered, scores: {name: {value, ci95}}, categories: [{kind, name, units, <main score>}]}.

        `unanswered` are empty answers, which are never right. Raises InputError for a question without an answer, an
        answer without its question, a missing field, and references that do not have the right answers.
        """
        empty = sum(map(is_empty, said.values()))
        return report(self.judged(questions, said), self.rates) | {"unanswered": empty}

    def judged(self, questions: Mapping[str, Entry], said: Answers) -> list[Unit]:
        """In the order of the questions' names, so that the order of the files changes nothing; raises as `score`."""
        missing, unknown = [i for i in questions if i not in said], [i for i in said if i not in questions]
        if unknown:
            raise InputError(f"{len(unknown)} answers are to questions not in the references, the first {unknown[0]!r}")
        if missing and not self.part:
            raise InputError(f"{len(missing)} of {len(questions)} questions have no answer, the first {missing[0]!r}")
        for i in said if self.truth else ():
            held = [questions[i][key] for key in self.truth if key in questions[i]]
            if not held:
                fields = " or ".join(map(repr, self.truth))
                raise InputError(f"the references have no field {fields}: are they of this benchmark?")
            if not any(map(_told, held)):
                raise InputError(f"question {i!r} has no answer in the references: take a split with answers")
        try:
            return self.units({i: questions[i] for i in sorted(said)}, said)
        except KeyError as error:
            raise InputError(f"the references have no field {error}: are they of this benchmark?") from error


def _told(truth: object) -> bool:
    """Whether a field holds an answer, or a list with one that is not empty."""
    return any(map(_told, truth)) if isinstance(truth, list) else truth not in (None, "")


def report(units: Sequence[Unit], rates: Rates) -> dict[str, Any]:
    """What `Benchmark.score` returns, of these units."""
    return scored(units, rates)[0]


def scored(units: Sequence[Unit], rates: Rates) -> tuple[dict[str, Any], Draws]:
    """The report of these units, and each score in every resample.

    Resamples draw the same units whatever the answers, so that of two models put to the same questions the difference
    of their draws is a paired bootstrap.
    """
    sums = np.array([unit.sums for unit in units], dtype=float)
    groups: dict[tuple[str, str], list[int]] = {}
    for place, unit in enumerate(units):
        for group in dict.fromkeys(unit.groups):
            groups.setdefault(group, []).append(place)
    ordered = sorted(groups)
    values = rates(np.stack([sums.sum(0), *(sums[groups[group]].sum(0) for group in ordered)]))
    drawn = rates(resampled(sums))
    main = next(iter(values))
    told = {
        "units": len(units),
        "scores": {k: {"value": float(v[0]), "ci95": interval(drawn[k])} for k, v in values.items()},
        "categories": [
            {"kind": kind, "name": name, "units": len(groups[kind, name]), main: float(values[main][place])}
            for place, (kind, name) in enumerate(ordered, start=1)
        ],
    }
    return told, drawn


def interval(drawn: Float[np.ndarray, " r"]) -> list[float]:
    """The middle 95 %."""
    return [float(x) for x in np.quantile(drawn, (0.025, 0.975))]


def resampled(sums: Float[np.ndarray, "n d"], seed: int = 0) -> Float[np.ndarray, "r d"]:
    """The sums of `RESAMPLES` draws of n units out of n, with replacement."""
    rng, n = np.random.default_rng(seed), len(sums)
    return np.stack([np.bincount(rng.integers(n, size=n), minlength=n) @ sums for _ in range(RESAMPLES)])


def ratio(part: Float[np.ndarray, "*k"], whole: Float[np.ndarray, "*k"]) -> Float[np.ndarray, "*k"]:
    """0 where the whole is."""
    return np.divide(part, whole, out=np.zeros_like(part), where=whole != 0)


def mean(name: str) -> Rates:
    """The score of units whose sums are (score, 1)."""
    return lambda sums: {name: ratio(sums[:, 0], sums[:, 1])}


def each(judge: Callable[[Entry, str], float], *kinds: str) -> Units:
    """Every question is a unit, and an empty answer wrong; `kinds` are the fields that hold its categories."""
    return lambda questions, said: [
        Unit((0.0 if is_empty(said[i]) else float(judge(entry, said[i])), 1.0), categories(entry, kinds))
        for i, entry in questions.items()
    ]


def categories(entry: Entry, kinds: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Those that the entry has; a list is several."""
    found = ((kind, entry[kind]) for kind in kinds if entry.get(kind) not in (None, ""))
    return tuple((kind, str(one)) for kind, value in found for one in (value if isinstance(value, list) else [value]))


def ask(suffix: str = "", field: str = "question") -> Callable[[Entry], str]:
    """The entry's question, in `field` or "question", and `suffix` on a line of its own."""
    return lambda entry: "\n".join(part for part in (str(entry.get(field) or entry["question"]), suffix) if part)
