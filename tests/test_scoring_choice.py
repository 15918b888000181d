"""POPE, MME, MMBench, SEED-Bench, MMMU, MathVista and CHAIR: the rules of their official code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from vla.errors import InputError
from vla.evaluation.vlm.scoring.chair import CHAIR, Vocabulary
from vla.evaluation.vlm.scoring.choice import MMBENCH, SEED_BENCH, parse_option
from vla.evaluation.vlm.scoring.mathvista import MATHVISTA, extracted, normalized
from vla.evaluation.vlm.scoring.mmmu import MMMU, letter, matches
from vla.evaluation.vlm.scoring.yesno import MME, POPE, TASKS, is_yes, label

OPTIONS = {"A": "a red bus", "B": "a cat", "C": "a dog", "D": "none of these"}


def values(report: dict[str, Any]) -> dict[str, float]:
    return {name: found["value"] for name, found in report["scores"].items()}


@pytest.mark.parametrize(
    ("said", "yes"),
    [
        ("No.", False),
        ("no", False),
        ("NO", True),  # only these three spellings are no
        ("There is not a cat", False),
        ("Yes. There is no dog.", True),  # the first sentence only
        ("Yes, there is no dog", False),
        ("No, there is", False),
        ("nothing", True),
        ("No\nit is", True),  # words are parted by spaces alone
        ("", True),
    ],
)
def test_pope_reads_yes_and_no(said: str, yes: bool) -> None:
    assert is_yes(said) is yes


def test_pope_scores_and_its_yes_ratio_is_of_predictions() -> None:
    questions = {str(i): {"label": "yes" if i < 4 else "no", "text": ""} for i in range(8)}
    said = {str(i): "yes" if i in (0, 1, 2, 4) else "no" for i in range(8)} | {"5": "no", "3": "no"}
    found = values(POPE.score(questions, said))
    assert found == {"accuracy": 0.75, "precision": 0.75, "recall": 0.75, "f1": 0.75, "yes_ratio": 0.5}
    never = values(POPE.score(questions, dict.fromkeys(questions, "no")))
    assert never["f1"] == never["precision"] == never["yes_ratio"] == 0


@pytest.mark.parametrize(
    ("said", "read"), [("Yes.", "yes"), ("No, it", "no"), ("It is yes", "other"), ("", "other"), (" NO", "no")]
)
def test_mme_reads_the_first_four_characters(said: str, read: str) -> None:
    assert label(said) == read


def mme(task: str, image: str, truth: str) -> tuple[str, dict[str, str]]:
    return f"{task}/{image}/{truth}?", {"task": task, "image": image, "question": truth, "answer": truth}


def test_mme_adds_accuracy_and_accuracy_of_both() -> None:
    pairs = [("count", "1"), ("count", "2"), ("code_reasoning", "1")]
    questions = dict(mme(task, image, truth) for task, image in pairs for truth in ("Yes", "No"))
    said = {i: entry["answer"] for i, entry in questions.items()} | {"count/2/No?": "Yes"}
    report = MME.score(questions, said)
    assert values(report) == {"total": 325, "perception": 75 + 50, "cognition": 200}
    assert {(r["kind"], r["name"]): r["total"] for r in report["categories"]}["task", "count"] == 125
    everything = dict(mme(task, "1", truth) for task in TASKS for truth in ("Yes", "No"))
    best = values(MME.score(everything, {i: e["answer"] for i, e in everything.items()}))
    assert best == {"total": 2800, "perception": 2000, "cognition": 800}
    with pytest.raises(InputError, match="two questions"):
        MME.score(dict([mme("count", "1", "Yes")]), {"count/1/Yes?": "yes"})


@pytest.mark.parametrize(
    ("said", "read"),
    [
        ("B", "B"),
        ("(C)", "C"),
        ("B. a cat", "B"),
        ("The answer is D.", "D"),
        ("A or B", None),
        ("B is what I would say of it here", None),  # not among the last four words
        ("It is a cat.", "B"),
        ("The answer is **c**, as one can see in the picture", "C"),
        ("a cat and a dog", None),
        ("", None),
        ("Z", None),
        ("b", None),
        ("Cannot determine the answer B", None),
        ("a cat " * 30, None),  # far longer than all options
    ],
)
def test_mmbench_letter_in_prose(said: str, read: str | None) -> None:
    assert parse_option(said, OPTIONS) == read


def rotations(index: int, options: str) -> dict[str, dict[str, str]]:
    """A question with its four rotations; the true option is the first of `options`."""
    turned = [options[k:] + options[:k] for k in range(4)]
    return {
        str(index + k * 10**6): dict(zip("ABCD", turned[k], strict=True))
        | {"answer": "ABCD"[turned[k].index(options[0])], "category": "color", "l2-category": "perception"}
        for k in range(4)
    }


def test_mmbench_needs_every_rotation() -> None:
    questions = rotations(7, "wxyz") | rotations(8, "wxyz")
    right = {i: entry["answer"] for i, entry in questions.items()}
    assert values(MMBENCH.score(questions, right)) == {"circular_accuracy": 1}
    assert values(MMBENCH.score(questions, right | {"3000008": "A"})) == {"circular_accuracy": 0.5}
    # Who always says A is right once of four, and so never.
    report = MMBENCH.score(questions, dict.fromkeys(questions, "A"))
    assert values(report) == {"circular_accuracy": 0} and report["units"] == 2


def test_seed_bench_takes_letters_and_prose() -> None:
    entry = {f"choice_{a}": t for a, t in zip("abcd", OPTIONS.values(), strict=True)} | {"question_type_id": 1}
    questions = {str(i): entry | {"answer": "B", "question": "What?"} for i in range(4)}
    report = SEED_BENCH.score(questions, {"0": "B", "1": "(B) a cat", "2": "It is a cat", "3": "C"})
    assert values(report) == {"accuracy": 0.75}
    assert SEED_BENCH.prompt(questions["0"]).split("\n")[2] == "B. a cat"


@pytest.mark.parametrize(
    ("said", "read"),
    [
        ("(A) or rather (B)", "B"),  # the last in brackets
        ("(A), though B may be", "A"),  # brackets before bare letters
        ("A, no: C", "C"),
        ("B.", "B"),
        ("I think that it shows a cat, rather a DOG", "C"),  # the last option, of more than five words
        ("it is a cat", None),  # five words are too few
        ("", None),
    ],
)
def test_mmmu_letter(said: str, read: str | None) -> None:
    assert letter(said, ["a red bus", "a cat", "a dog"]) == read


@pytest.mark.parametrize(
    ("said", "truth", "right"),
    [
        ("The answer is 5.", "5", True),
        ("So x = 1,234.50", "1234.5", True),
        ("it is 3.14159", "3.14", True),
        ("it is 3.2", "3.14", False),
        ("we find 7\nthus it is 8", "7", False),  # what follows the words before an answer
        ("The cell is a neuron.", "Neuron", True),
        ("it is box", "x", False),  # a single letter needs a space beside it
        ("it is x or y", "x", True),
        ("1e3", "1000", True),
        ("", "5", False),
    ],
)
def test_mmmu_short_answer(said: str, truth: str, right: bool) -> None:
    assert matches(said, [truth]) is right


def test_mmmu_draws_what_it_cannot_read_in_the_official_order() -> None:
    kind = {"question_type": "multiple-choice", "options": "['x', 'y', 'z', 'w']", "answer": "A", "question": "?"}
    ids = [f"validation_{s}_{n}" for s in ("Math", "Art", "Art_Theory") for n in (10, 2)]
    said = dict.fromkeys(ids, "?")
    one = MMMU.score(dict.fromkeys(ids, kind), said)
    other = MMMU.score(dict.fromkeys(reversed(ids), kind), dict(reversed(said.items())))
    assert one == other and {r["name"] for r in one["categories"] if r["kind"] == "subject"} == {
        "Art",
        "Art_Theory",
        "Math",
    }
    answers = {"validation_Art_1": {"question_type": "multiple-choice", "ground_truth": "B"}}
    assert values(MMMU.score(answers, {"validation_Art_1": "B"})) == {"accuracy": 1}


CHOICE = {"question_type": "multi_choice", "answer_type": "text", "choices": ["12", "120", "ant"], "precision": None}
INTEGER = {"question_type": "free_form", "answer_type": "integer", "choices": None, "precision": None}
FLOAT = {"question_type": "free_form", "answer_type": "float", "choices": None, "precision": 2.0}


@pytest.mark.parametrize(
    ("entry", "said", "read"),
    [
        (CHOICE, "120", "120"),
        (CHOICE, "The answer is (b)", "120"),
        (CHOICE, "C", "ant"),
        (CHOICE, "ants", "ant"),  # the nearest by edits
        (CHOICE, 'The answer is "ant".', "ant"),
        (INTEGER, "5.9", "5"),
        (INTEGER, "five", None),
        (INTEGER, 'The answer is "8".', "8"),
        (INTEGER, "inf", None),
        (FLOAT, "1.239", "1.24"),
        (FLOAT, "2", "2.0"),
        (FLOAT, "", None),
    ],
)
def test_mathvista_extracts_and_normalises(entry: dict[str, Any], said: str, read: str | None) -> None:
    assert normalized(extracted(said, entry), entry) == read


def test_mathvista_takes_an_extraction_whole(tmp_path: Path) -> None:
    questions = {str(i): INTEGER | {"answer": "5", "question": "?"} for i in range(4)}
    quoted = 'The answer is "5".'
    rows = {"0": {"extraction": quoted}, "1": {"response": quoted}, "2": {"extraction": "5"}, "3": {"extraction": ""}}
    (tmp_path / "out.json").write_text(json.dumps({i: row | {"pid": i} for i, row in rows.items()}))
    said = MATHVISTA.answers(tmp_path / "out.json", questions)
    right = {i: values(MATHVISTA.score({i: questions[i]}, {i: said[i]}))["accuracy"] for i in questions}
    assert right == {"0": 0, "1": 1, "2": 1, "3": 0}


def test_mmbench_has_no_options_that_pandas_reads_as_empty() -> None:
    entry = {"question": "Which?", "hint": "nan", "A": "a cat", "B": "None", "C": "N/A", "D": float("nan")}
    assert MMBENCH.prompt(entry).split("\n")[:3] == ["Question: Which?", "Options:", "A. a cat"]
    questions = {str(i): entry | {"answer": answer} for i, answer in ((1, "A"), (2, "B"))}
    assert values(MMBENCH.score(questions, {"1": "A", "2": "B"})) == {"circular_accuracy": 0.5}


def test_mme_skips_an_answer_with_a_tab(tmp_path: Path) -> None:
    """Of the question nothing is counted, and its image is not all right."""
    lines = [
        "1.jpg\tIs it?\tYes\tYes",
        "1.jpg\tIs it not?\tNo\tNo\tindeed",
        "2.jpg\tIs?\tYes\tyes",
        "2.jpg\tNot?\tNo\tno",
    ]
    (tmp_path / "count.txt").write_text("\n".join(lines))
    questions = MME.entries(tmp_path)
    assert values(MME.score(questions, MME.answers(tmp_path, questions)))["total"] == 100 + 50


def test_mathvista_categories_are_of_the_metadata_too() -> None:
    questions = {"1": INTEGER | {"answer": "5", "metadata": {"skills": ["a", "b"]}, "question": "?"}}
    report = MATHVISTA.score(questions, {"1": "5"})
    assert {(r["kind"], r["name"]) for r in report["categories"]} >= {("skills", "a"), ("skills", "b")}
    assert MATHVISTA.prompt(questions["1"]).startswith("Hint: Please answer the question requiring an integer")


WORDS = (
    "person, girl, man\ndog, puppy\nhot dog\nbear\nteddy bear, teddy\nchair, seat\ntoilet\ntie\ntrain\nknife\nplate\n"
    "bus\nwine glass\nclock\n"
)


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    (tmp_path / "synonyms.txt").write_text(WORDS)
    notes = [{"image_id": 1, "category_id": 18}, {"image_id": 2, "category_id": 1}]
    categories = [{"id": 18, "name": "dog"}, {"id": 1, "name": "person"}]
    (tmp_path / "instances_val2014.json").write_text(json.dumps({"annotations": notes, "categories": categories}))
    captions = [{"image_id": 1, "caption": "a man on a seat"}, {"image_id": 3, "caption": "sky"}]
    (tmp_path / "captions_val2014.json").write_text(json.dumps({"annotations": captions}))
    return tmp_path


@pytest.mark.parametrize(
    ("caption", "named"),
    [
        ("Two puppies and a girl.", ["dog", "person"]),
        ("a hot dog", ["hot dog"]),
        ("hot dogs", ["hot dog"]),
        ("hot, dog", ["dog"]),
        ("a teddy bear with a baby bear", ["teddy bear", "bear"]),
        ("a toilet seat", ["toilet"]),
        ("a toilet without seats", ["toilet"]),
        ("men in a bow tie with knives", ["person", "tie", "knife"]),
        ("a passenger train at home plate", ["train"]),
        # What the official code counts, and does not, by the rules of its singulars.
        ("a bus near train tracks", []),
        ("buses, a train", ["bus", "train"]),
        ("two ties, one tie", ["tie"]),
        ("a glass, a wine glass and two wine glasses", ["wine glass", "wine glass"]),
        ("at 12 o'clock, a clock", ["clock"]),
        ("the dog's girl. A dog! a man", ["dog", "person", "dog", "person"]),
        ("", []),
    ],
)
def test_chair_names_things(coco: Path, caption: str, named: list[str]) -> None:
    assert Vocabulary.read(coco / "synonyms.txt").mentions(caption) == named


def test_chair_counts_mentions_and_captions(coco: Path) -> None:
    """There is what is segmented or named by a reference caption; images without a caption are not asked for."""
    images = CHAIR.entries(coco)
    report = CHAIR.score(images, {"1": "a dog, a man, a chair and a knife", "3": "a toilet"})
    assert values(report) == {"chair_i": 2 / 5, "chair_s": 1}
    assert values(CHAIR.score(images, {"1": "a puppy", "2": "a dog"})) == {"chair_i": 0.5, "chair_s": 0.5}
    assert values(CHAIR.score(images, {"3": ""})) == {"chair_i": 0, "chair_s": 0}
    (coco / "synonyms.txt").write_text("dog\n")
    with pytest.raises(InputError, match="no category 'person'"):
        CHAIR.entries(coco)
