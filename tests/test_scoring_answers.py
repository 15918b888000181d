"""VQAv2, TextVQA, DocVQA, ChartQA and OCRBench: the rules of their official scripts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla.evaluation.vlm.scoring.text import anls, contained, edits, relaxed
from vla.evaluation.vlm.scoring.vqa import CONTRACTIONS, agreement, plain, textvqa, vqav2


def people(*answers: str) -> dict[str, object]:
    return {"answers": [{"answer": a, "answer_id": i} for i, a in enumerate(answers)]}


@pytest.mark.parametrize(("same", "score"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_ten_people_leave_one_out(same: int, score: float) -> None:
    others = [f"word{i}" for i in range(10 - same)]
    assert vqav2(people(*["bus"] * same, *others), "bus") == pytest.approx(score)
    assert textvqa({"answers": ["bus"] * same + others}, "bus") == pytest.approx(score)


def test_a_tie_counts_for_both_answers() -> None:
    tied = people(*["red"] * 5, *["blue"] * 5)
    assert vqav2(tied, "red") == vqav2(tied, "blue") == 1


def test_vqav2_normalises_only_where_people_differ() -> None:
    assert vqav2(people(*["2"] * 10), "Two") == 0
    assert vqav2(people(*["2"] * 9, "3"), "Two") == 1
    assert vqav2(people(*["the bus."] * 10), "the bus.") == 1
    assert textvqa({"answers": ["2"] * 10}, "Two") == 1


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("The Bus", "bus"),
        ("an apple, a pear", "apple pear"),
        ("none", "0"),
        ("ten", "10"),
        ("1,000", "1000"),  # a comma between digits: every mark goes
        ("left-right", "left right"),
        ("left- right", "left right"),
        ("3.5", "3.5"),
        ("3.", "3"),
        (".5", ".5"),
        ("e.g. this", "eg this"),
        ("dont", "don't"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("yall'd've", "y'all'd've"),
        ("somebody'd", "somebodyd"),
        ("who's", "who's"),
        ("a", ""),
        ("." * 40, "." * 8),  # the script's count of replacements is the number of a flag, 32
    ],
)
def test_vqav2_normal_form(text: str, result: str) -> None:
    assert plain(text) == result


def test_a_contraction_is_not_also_a_word_left_as_it_is() -> None:
    assert "lets" not in CONTRACTIONS and "shes" not in CONTRACTIONS and CONTRACTIONS["hes"] == "he's"


def test_textvqa_parts_a_possessive_and_drops_commas() -> None:
    assert textvqa({"answers": ["denny 's"] * 10}, "Denny's") == 1
    assert textvqa({"answers": ["1000"] * 10}, "1,000?") == 1


@given(st.lists(st.sampled_from("abcd"), min_size=1, max_size=10), st.sampled_from("abcde"))
def test_agreement_is_the_mean_over_leaving_one_out(answers: list[str], said: str) -> None:
    scores = [min((answers[:i] + answers[i + 1 :]).count(said) / 3, 1) for i in range(len(answers))]
    assert agreement(said, answers) == pytest.approx(sum(scores) / len(scores))


@given(st.text("abc", max_size=8), st.text("abc", max_size=8), st.text("abc", max_size=8))
def test_edits_are_a_metric(a: str, b: str, c: str) -> None:
    assert edits(a, b) == edits(b, a) <= edits(a, c) + edits(c, b)
    assert (edits(a, b) == 0) == (a == b) and edits(a, "") == len(a)
    assert edits(a + b, a) == len(b)


def test_edits_by_hand() -> None:
    assert edits("kitten", "sitting") == 3 and edits("flaw", "lawn") == 2


def test_anls_keeps_one_half_and_drops_less() -> None:
    assert anls({"answers": ["abcd"]}, "abxy") == 0.5
    assert anls({"answers": ["abcde"]}, "abxyz") == 0
    assert anls({"answers": ["nothing", "Paris"]}, "paris") == 1
    assert anls({"answers": [""]}, "") == 1


def test_anls_collapses_spaces_but_keeps_the_raw_length() -> None:
    assert anls({"answers": ["a  b"]}, "A B") == 1
    # One edit of the texts "a b" and "a c", over the four characters of "a  b".
    assert anls({"answers": ["a  b"]}, "a c") == 0.75


@pytest.mark.parametrize(
    ("label", "said", "right"),
    [
        ("100", "105", True),
        ("100", "105.1", False),
        ("100", "95", True),
        ("-100", "-105", True),
        ("0.05", "5%", True),
        ("5%", "0.05", True),
        ("5", "5%", False),
        ("0", "0", True),
        ("0", "0.0", False),  # a target of 0 is compared as text
        ("0", "0.01", False),
        ("Blue", "blue", True),
        ("Blue", "blue.", False),
        ("1,000", "1000", False),
        ("10", "ten", False),
        ("10", "nan", False),
        ("10", "inf", False),
    ],
)
def test_chartqa_relaxed_accuracy(label: str, said: str, right: bool) -> None:
    assert relaxed({"label": label}, said) == right


def test_ocrbench_contains_in_lower_case() -> None:
    scene = {"answers": ["Open\nNow"], "dataset_name": "STVQA"}
    assert contained(scene, "The sign says OPEN NOW!") == 1
    assert contained(scene, "OPENNOW") == 0
    assert contained({"answers": "CENTRE", "dataset_name": "IIIT5K"}, "centre") == 1


def test_ocrbench_handwritten_mathematics_keeps_case_and_drops_spaces() -> None:
    formula = {"answers": ["X ^ { 2 }"], "dataset_name": "HME100k"}
    assert contained(formula, "it is X^{2} here") == 1
    assert contained(formula, "x^{2}") == 0
