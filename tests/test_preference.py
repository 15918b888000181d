"""Preference losses and pairs: the papers' formulas, what is false in a rejected answer, and the files of others."""

from __future__ import annotations

import io
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from test_questions import Draw, build, draws, possible_views

from vla.datasets.instructions import instructions
from vla.datasets.preferences import corrupted, read_pairs
from vla.datasets.questions import Question, questions
from vla.errors import InputError
from vla.models.batch import IGNORE
from vla.training.preference.losses import Objective, answer_mask, changed, preference_loss, token_weights

NAMES = re.compile(r"\b(?:an?|another) (\w+ \w+)")


def scored(seed: int = 0, tokens: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    policy, reference = -torch.rand(2, 4, tokens, generator=torch.Generator().manual_seed(seed)).double()
    return policy.float(), reference.float()


@given(seed=st.integers(0, 99), beta=st.floats(0.05, 2))
def test_the_losses_are_the_papers(seed: int, beta: float) -> None:
    policy, reference = scored(seed)
    ratio = (beta * (policy - reference).sum(1)).tolist()
    pairs = list(zip(ratio[:2], ratio[2:], strict=True))

    def cost(value: float) -> float:
        return math.log1p(math.exp(-value))

    expected = {
        "sigmoid": sum(cost(c - r) for c, r in pairs) / 2,
        "bco_pair": sum(cost(c) + cost(-r) for c, r in pairs) / 2,
        "sft": -policy[:2].mean().item(),
    }
    for name, value in expected.items():
        loss, margin = preference_loss(policy, reference, torch.ones(4, 7), Objective({name: 1}, beta))
        assert loss.item() == pytest.approx(value, rel=1e-4)
        assert margin.tolist() == pytest.approx([c - r for c, r in pairs], abs=1e-5)
    mpo, _ = preference_loss(
        policy, reference, torch.ones(4, 7), Objective({"sigmoid": 0.8, "bco_pair": 0.2, "sft": 1}, beta)
    )
    assert mpo.item() == pytest.approx(
        0.8 * expected["sigmoid"] + 0.2 * expected["bco_pair"] + expected["sft"], rel=1e-4
    )


@given(seed=st.integers(0, 99))
def test_equal_models_have_no_margin(seed: int) -> None:
    policy, _ = scored(seed)
    loss, margin = preference_loss(policy, policy, torch.ones(4, 7), Objective())
    assert loss.item() == pytest.approx(math.log(2)) and not margin.any()


tokens = st.lists(st.integers(0, 3), min_size=1, max_size=20)


@given(a=tokens, b=tokens, least=st.integers(1, 4))
def test_what_is_not_changed_is_in_both(a: list[int], b: list[int], least: int) -> None:
    marks = changed(a, b, least)
    same = [[t for t, mark in zip(x, m, strict=True) if not mark] for x, m in zip((a, b), marks, strict=True)]
    assert same[0] == same[1] and (not same[0] or len(same[0]) >= least)
    assert (not any(changed(a, a, 1)[0])) and all(changed(a, a, len(a) + 1)[0])


@pytest.mark.parametrize("weight", [1.0, 1.1, 5.0])
@pytest.mark.parametrize("average", [False, True])
def test_rlhf_vs_variants_weigh_the_corrected_segment(weight: float, average: bool) -> None:
    said = [[1, 2, 3, 4, 5, 6, 7], [1, 2, 3, 9, 8, 5, 6, 7]]
    labels = torch.full((2, 10), IGNORE)
    for row, answer in zip(labels, said, strict=True):
        row[1 : 1 + len(answer)] = torch.tensor(answer)
    found = token_weights(labels, Objective(weight=weight, average=average))
    for row, corrected, length in ((0, [3], 7), (1, [3, 4], 8)):
        expected = [weight if i in corrected else 1.0 for i in range(length)]
        whole = sum(expected) if average else 1.0
        assert found[row, :length].tolist() == pytest.approx([value / whole for value in expected])
        assert not found[row, length:].any()


def test_of_a_conversation_the_last_answer_alone_counts() -> None:
    labels = torch.tensor([[IGNORE, 5, 6, IGNORE, 7, 8, IGNORE], [IGNORE, IGNORE, 5, 6, IGNORE, IGNORE, IGNORE]])
    assert answer_mask(labels).int().tolist() == [[0, 0, 0, 0, 1, 1, 0], [0, 0, 1, 1, 0, 0, 0]]


@pytest.mark.parametrize("wrong", [{"losses": {"ppo": 1}}, {"losses": {}}, {"beta": 0.0}, {"min_match": 0}])
def test_a_wrong_objective_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="preference"):
        Objective(**wrong)


@given(draw=draws(), seed=st.integers(0, 99))
def test_a_corrupted_description_says_one_thing_that_is_false(draw: Draw, seed: int) -> None:
    scene = build(draw)
    rng = np.random.default_rng(seed)
    for question in instructions(scene, rng):
        if question.kind != "detail" or (made := corrupted(question, rng)) is None:
            continue
        kind, answer = made
        names = {thing.name for thing in possible_views(scene, "front")[0]}
        told, extra = NAMES.findall(question.answer), [n for n in NAMES.findall(answer) if n not in names]
        assert answer != question.answer and len(NAMES.findall(answer)) == len(told)
        if kind in ("object", "color", "shape"):
            (false,) = extra
            (true,) = [t for t, n in zip(told, NAMES.findall(answer), strict=True) if n == false]
            same = [one == other for one, other in zip(false.split(), true.split(), strict=True)]
            assert same == {"object": [False, False], "color": [False, True], "shape": [True, False]}[kind]
        else:
            assert not extra
        if kind == "count":
            assert answer.split()[2] != question.answer.split()[2]
        if kind == "relation":
            assert answer.partition("closest")[0] != question.answer.partition("closest")[0]


@given(draw=draws(), seed=st.integers(0, 99))
def test_a_corrupted_short_answer_is_another_of_its_kind(draw: Draw, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for question in questions(build(draw), rng):
        if (made := corrupted(question, rng)) is not None:
            assert made[1] != question.answer
            assert made[1].isdecimal() == question.answer.isdecimal()


def test_what_cannot_be_known_to_be_false_makes_no_pair() -> None:
    rng = np.random.default_rng(0)
    assert corrupted(Question("caption", "describe the image", "an empty table", "front"), rng) is None
    assert corrupted(Question("open", "why?", "because", "front"), rng) is None


def png(value: int) -> bytes:
    held = io.BytesIO()
    Image.fromarray(np.full((4, 6, 3), value, np.uint8)).save(held, "PNG")
    return held.getvalue()


def test_rlhf_vs_file(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    text = json.dumps({"question": "What is it?", "chosen": "a cat", "rejected": "a dog"})
    same = json.dumps({"question": "What is it?", "chosen": "a cat", "rejected": "a cat"})
    rows = [{"text": t, "image": {"bytes": png(7), "path": "0.png"}, "idx": i} for i, t in enumerate((text, same))]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "set.parquet")
    (pair,) = read_pairs(tmp_path / "set.parquet")
    first, second = pair.examples()
    assert (first.prompt, first.target, second.target) == ("What is it?", "a cat", "a dog")
    assert first.images["image"].shape == (4, 6, 3) and (first.images["image"] == 7).all()


def entry(preference: Any = 2, image: str = "0.png") -> dict[str, Any]:
    turns = [("human", "<image>\nWhat is it?"), ("gpt", "an animal"), ("human", "Which?")]
    return {
        "image": image,
        "conversations": [{"from": who, "value": value} for who, value in turns],
        "output_1": {"from": "llava", "value": "a dog"},
        "output_2": {"from": "llava", "value": "a cat"},
        "preference": preference,
    }


def test_llava_rlhfs_file(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_bytes(png(9))
    (tmp_path / "set.json").write_text(json.dumps([entry()]))
    (pair,) = read_pairs(tmp_path / "set.json")
    first, second = pair.examples()
    assert (first.prompt, first.target) == ("What is it?", "an animal")
    assert (first.turns, second.turns) == ((("Which?", "a cat"),), (("Which?", "a dog"),))
    assert (first.images["image"] == 9).all()


@pytest.mark.parametrize("wrong", [entry(preference=3), entry(image="../0.png"), {"image": "0.png"}, 4])
def test_a_malformed_entry_is_named(tmp_path: Path, wrong: Any) -> None:
    (tmp_path / "set.json").write_text(json.dumps([entry(), wrong]))
    with pytest.raises(InputError, match="entry 1"):
        read_pairs(tmp_path / "set.json")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no file of preferences"):
        read_pairs(tmp_path / "none.json")
