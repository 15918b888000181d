"""No answer is never a right answer: what is empty, what declines, and what the references do not tell."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from vla.errors import InputError
from vla.evaluation.vlm.probes.counting import COUNTING
from vla.evaluation.vlm.probes.existence import POPE_SIM
from vla.evaluation.vlm.probes.spatial import SPATIAL
from vla.evaluation.vlm.scoring.answered import answered
from vla.evaluation.vlm.scoring.chair import Vocabulary
from vla.evaluation.vlm.scoring.files import Entry
from vla.evaluation.vlm.scoring.mathvista import normalized
from vla.evaluation.vlm.scoring.registry import BENCHMARKS
from vla.evaluation.vlm.scoring.yesno import yes_or_no
from vla.evaluation.vlm.vqa import score

WORDS = ["", "a", "no", "yes", "-", "cannot be determined"]
LETTERS = "ABCD"
EMPTY = ["", " ", "\n\t", "\u200b", "\xa0 "]
DECLINED = [
    "I'm sorry, I can't help with that.",
    "I\u2019m sorry, but I cannot see a dog or a cat.",
    "Sorry, I can't help with images of people yet.",
    "Cannot determine the answer",
    "As an AI, I would say a cat",
    "I don't know.",
    "...",
]


def questions(name: str, rng: random.Random, n: int = 12) -> dict[str, dict[str, Any]]:
    """Questions whose truth is whatever a rule might guess, by the benchmark's own fields."""
    found: dict[str, dict[str, Any]] = {}
    for k in range(n):
        words = rng.sample(WORDS, 4)
        choices = {letter: word for letter, word in zip(LETTERS, words, strict=True) if word}
        letter = rng.choice(list(choices))
        entry: dict[str, Any] = {"question": "?", "answer": letter, "category": "c"}
        match name:
            case "vqav2":
                entry = {"question": "?", "answers": [{"answer": rng.choice(WORDS[1:])}, {"answer": words[1]}] * 5}
            case "textvqa" | "docvqa":
                entry = {"question": "?", "answers": [rng.choice(WORDS[1:]), "", words[0]]}
            case "chartqa":
                entry = {"query": "?", "label": rng.choice(WORDS[1:])}
            case "ocrbench":
                entry |= {"dataset_name": rng.choice(["HME100k", "svt"]), "answers": ["", rng.choice(WORDS[1:])]}
            case "mme":
                entry |= {"task": "count", "image": str(k // 2), "answer": "Yes" if k % 2 else "No"}
            case "mmbench":
                entry |= choices
            case "seed-bench":
                entry |= {f"choice_{a.lower()}": word for a, word in zip(LETTERS, words, strict=True)}
            case "mmmu":
                kind = rng.choice(["multiple-choice", "open"])
                entry |= {"options": words if kind == "multiple-choice" else [], "question_type": kind}
                entry["answer"] = letter if kind == "multiple-choice" else ["", rng.choice(["5", "a"])]
            case "mathvista":
                kind = rng.choice(["multi_choice", "free_form"])
                entry |= {"question_type": kind, "answer_type": rng.choice(["text", "integer", "list"])}
                entry |= {"choices": [w for w in words if w], "answer": rng.choice([w for w in words if w])}
            case "pope":
                entry = {"text": "?", "label": rng.choice(["yes", "no"])}
            case "chair":
                vocabulary = Vocabulary({"dog": "dog", "cat": "cat"})
                entry |= {"objects": {"dog"}, "captions": [], "vocabulary": vocabulary}
        found[f"validation_Art_{k}" if name == "mmmu" else str(k)] = entry
    return found


def value(name: str, asked: Mapping[str, Entry], said: str) -> float:
    """The main score where every answer is the same."""
    bench = BENCHMARKS[name]
    sums = np.array([unit.sums for unit in bench.judged(asked, dict.fromkeys(asked, said))]).sum(0, keepdims=True)
    return float(next(iter(bench.rates(sums).values()))[0])


@pytest.mark.parametrize("name", [name for name in BENCHMARKS if name != "chair"])
def test_an_empty_answer_is_never_right(name: str) -> None:
    for seed in range(8):
        asked = questions(name, random.Random(seed))
        assert [value(name, asked, said) for said in EMPTY] == [0] * len(EMPTY)
    assert BENCHMARKS[name].score(asked, dict.fromkeys(asked, " "))["unanswered"] == len(asked)


@pytest.mark.parametrize("name", ["mme", "mmbench", "seed-bench", "mmmu", "mathvista", "pope"])
@pytest.mark.parametrize("said", DECLINED)
def test_what_declines_is_given_no_guess(name: str, said: str) -> None:
    for seed in range(8):
        asked = questions(name, random.Random(seed))
        asked = {i: e for i, e in asked.items() if e.get("question_type") not in ("open", "free_form")}
        # Where not to be able to tell is a choice, it may be chosen.
        asked = {i: e for i, e in asked.items() if WORDS[-1] not in map(str, [*e.values(), *e.get("choices", ())])}
        if name == "mme":
            asked = questions(name, random.Random(seed))
        if asked:
            assert value(name, asked, said) == 0


def test_an_empty_caption_does_not_lower_the_share_of_hallucinations() -> None:
    asked = questions("chair", random.Random(0), 4)
    wrong = {"0": "a cat", "1": "a dog", "2": "a dog and a cat", "3": "a dog"}
    few = BENCHMARKS["chair"].score({i: asked[i] for i in "02"}, {i: wrong[i] for i in "02"})
    for nothing in (*EMPTY, "I'm sorry, I can't help with that."):
        report = BENCHMARKS["chair"].score(asked, wrong | {"1": nothing, "3": nothing})
        assert report["scores"]["chair_s"]["value"] == few["scores"]["chair_s"]["value"] == 1


def test_ten_choices_whose_right_one_is_the_shortest() -> None:
    """The nearest choice to nothing is the shortest, by edits: the official code counts all ten."""
    choice = {"question_type": "multi_choice", "answer_type": "text", "choices": ["12", "a triangle"], "answer": "12"}
    asked = {str(i): choice for i in range(10)}
    assert (value("mathvista", asked, ""), value("mathvista", asked, "1")) == (0, 1)
    unsure = choice | {"choices": ["12", "Cannot be determined"]}
    assert normalized("cannot be determined.", unsure) == "Cannot be determined"


@pytest.mark.parametrize("name", [name for name in BENCHMARKS if name != "chair"])
def test_references_that_hide_the_answers_are_refused(name: str) -> None:
    asked = questions(name, random.Random(0))
    fields = [key for key in ("answer", "answers", "label") if key in BENCHMARKS[name].truth]
    for hidden in ("", None, [], [""]):
        secret = {i: {**e, **{key: hidden for key in fields if key in e}} for i, e in asked.items()}
        with pytest.raises(InputError, match="has no answer in the references"):
            BENCHMARKS[name].score(secret, dict.fromkeys(secret, "a"))


def test_probes_do_not_take_silence_for_a_yes() -> None:
    scene = {"truth": 0, "masks": np.zeros((0, 2, 2), bool), "hidden": "none", "distractors": "none"}
    counting = {"0/count": scene | {"answer": "0"}, "0/point": scene | {"answer": "0 points"}}
    report = COUNTING.benchmark.score(counting, dict.fromkeys(counting, ""))["scores"]
    assert report["exact"]["value"] == report["point_then_count"]["value"] == 0
    assert report["mean_error"]["value"] == 1
    pairs = {f"0/{category}/{a}": {"answer": a} for category in ("random", "adversarial") for a in ("yes", "no")}
    report = POPE_SIM.benchmark.score(pairs, dict.fromkeys(pairs, ""))["scores"]
    assert report["accuracy"]["value"] == report["counterfactual_pairs"]["value"] == 0
    ways = {f"0/left/{way}": {"answer": a} for way, a in (("plain", "yes"), ("swapped", "no"))}
    ways |= {f"0/left/{way}": {"answer": "no"} for way in ("opposite", "negated")}
    report = SPATIAL.benchmark.score(ways, dict.fromkeys(ways, ""))["scores"]
    assert report["accuracy"]["value"] == report["consistency"]["value"] == 0
    assert score("open", "", "") == 0


@pytest.mark.parametrize(
    ("said", "read"),
    [("I'm sorry, yes.", "yes"), ("I cannot see one, no", "no"), ("Sorry, I can't see", ""), ("maybe", "yes")],
)
def test_what_says_yes_or_no_is_read_also_where_it_declines(said: str, read: str) -> None:
    assert yes_or_no(said) == read


@pytest.mark.parametrize("said", ["B", "5", "-3", "a cat", "no", "I see a sorry cat", "(A)", "\u7532", "?!1"])
def test_what_says_something_is_an_answer(said: str) -> None:
    assert answered(said)
