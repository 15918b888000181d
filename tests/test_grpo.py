"""GRPO: its formula, its samples, and a model that learns from rewards."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_preference_train import colors, nothing, plan

from vla.datasets.preferences import Pair, pairs_of
from vla.datasets.vqa import VqaStore
from vla.errors import InputError
from vla.models.vla import VLA
from vla.training.preference.grpo import GrpoOptions, advantages, answered, grpo_loss, sample, train_grpo, truth
from vla.training.preference.losses import token_logps
from vla.training.question_run import QuestionRun


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> VqaStore:
    return colors(tmp_path_factory.mktemp("vqa") / "s.zarr")


@pytest.fixture
def guesser(store: VqaStore, make_model: Callable[..., VLA]) -> Callable[[], VLA]:
    """Makes models that answer with a colour whatever they see, twice as often with blue."""
    trained = make_model(robot=False).train()
    optimizer = torch.optim.Adam(trained.parameters(), 1e-2)
    said = [example for pair in pairs_of(store, "train")[:16] for example in pair.examples()]
    batch = trained.processor.batch([*said, *(example for example in said if example.target == "blue")])
    for _ in range(25):
        optimizer.zero_grad()
        trained(batch)[0].mean().backward()
        optimizer.step()

    def make() -> VLA:
        model = make_model(robot=False)
        model.load_state_dict(trained.state_dict())
        return model

    return make


def test_the_loss_is_that_of_the_paper() -> None:
    policy, old, reference = torch.randn(3, 2, 4).unbind()
    said, advantage, clip, beta = torch.tensor([[1, 1, 1, 0], [0, 1, 0, 0]]).bool(), torch.tensor([0.7, -1.2]), 0.2, 0.1
    total, apart = 0.0, 0.0
    for row in range(2):
        tokens = [column for column in range(4) if said[row, column]]
        for column in tokens:
            now, was, other = (float(x[row, column]) for x in (policy, old, reference))
            ratio, a = math.exp(now - was), float(advantage[row])
            best = min(ratio * a, min(max(ratio, 1 - clip), 1 + clip) * a)
            divergence = math.exp(other - now) - (other - now) - 1
            total -= (best - beta * divergence) / len(tokens) / 2
            apart += divergence / len(tokens) / 2
    found = grpo_loss(policy, old, reference, said, advantage, clip, beta)
    assert [value.item() for value in found] == pytest.approx([total, apart], rel=1e-5)


@given(st.lists(st.lists(st.integers(-5, 5), min_size=3, max_size=3), min_size=1, max_size=4))
def test_advantages_are_of_the_group(rewards: list[list[int]]) -> None:
    given = torch.tensor(rewards, dtype=torch.float)
    found = advantages(given)
    assert torch.allclose(found.sum(1), torch.zeros(len(rewards)), atol=1e-4)
    for row, group in zip(found, given, strict=True):
        assert row.std().item() == pytest.approx(float(group.std() > 0), abs=0.01)
        assert torch.equal(row.argsort(stable=True), group.argsort(stable=True))


@pytest.mark.parametrize("robot", [False, True])
def test_tokens_are_drawn_with_the_probabilities_that_are_learned_from(
    robot: bool, make_model: Callable[..., VLA]
) -> None:
    model = make_model(robot=robot)  # whose action tokens are never drawn
    images = [{"front": np.full((32, 32, 3), value, np.uint8)} for value in (20, 200)]
    prompts = model.processor.question_prompt(["what color is the cube?", "where?"], images)
    tokens, said = sample(model, prompts, 6)
    with torch.no_grad():
        batch = answered(prompts, tokens, said, 0)
        learned = token_logps(model, batch, image_token=False)[:, -tokens.shape[1] :]
        decoding, drawn = model.decoding(prompts), []
        for column in tokens.T:
            chances = decoding.next_logits()[:, : model.text_vocab]
            chances = chances.index_fill(1, torch.tensor([model.processor.image]), -torch.inf).log_softmax(-1)
            drawn.append(chances.gather(1, column[:, None]).squeeze(1))
            decoding.extend(model.backbone.embed_tokens(column[:, None]))
    torch.testing.assert_close(learned, torch.stack(drawn, 1) * said, rtol=1e-3, atol=1e-4)

    many = prompts.rows(torch.zeros(4000, dtype=torch.long))
    first = sample(model, many, 1)[0][:, 0]
    every = torch.tensor([[i] for i in range(model.text_vocab) if i != model.processor.image])
    asked = answered(prompts.rows(torch.zeros_like(every[:, 0])), every, torch.ones_like(every, dtype=torch.bool), 0)
    with torch.no_grad():
        learned = token_logps(model, asked, image_token=False)[:, -1].exp()
    assert learned.sum().item() == pytest.approx(1, abs=1e-4)
    chances = torch.zeros(model.text_vocab).index_copy(0, every[:, 0], learned)
    seen = torch.bincount(first, minlength=len(chances)) / len(first)
    assert (seen - chances).abs().max() < 5 * (0.25 / len(first)) ** 0.5


def test_an_answer_ends_with_its_end_and_nothing_is_said_after_it(guesser: Callable[[], VLA], store: VqaStore) -> None:
    model, pair = guesser().eval(), pairs_of(store, "train")[0]
    prompts = model.processor.question_prompt([pair.prompt] * 16, [pair.images()] * 16)
    tokens, said = sample(model, prompts, 12)
    eos = model.processor.eos
    for row, mask in zip(tokens.tolist(), said.tolist(), strict=True):
        length = sum(mask)
        assert mask == [True] * length + [False] * (len(mask) - length)
        assert eos not in row[: length - 1] and all(token == eos for token in row[length:])
    assert any(eos in row for row in tokens.tolist())


def test_a_few_steps_raise_the_reward(store: VqaStore, guesser: Callable[[], VLA], tmp_path: Path) -> None:
    settings = plan(steps=30, evaluate_every=15, batch_size=4, lr=3e-3, accumulate=2)
    # The model before it learns is that of a run whose rate is none.
    before = train_grpo(
        QuestionRun(guesser(), {"vqa": store}, plan(steps=1, lr=1e-9), tmp_path / "a"),
        GrpoOptions(max_tokens=4),
        nothing,
    )
    after = train_grpo(
        QuestionRun(guesser(), {"vqa": store}, settings, tmp_path / "b"),
        GrpoOptions(max_tokens=4, beta=0, uses=2),
        nothing,
    )
    assert before.evaluations[-1]["reward"] < 0.7 < 0.9 < after.evaluations[-1]["reward"]


def test_grpo_that_was_cut_off_goes_on(store: VqaStore, guesser: Callable[[], VLA], tmp_path: Path) -> None:
    settings, options = plan(steps=4, evaluate_every=2, batch_size=2), GrpoOptions(max_tokens=3, uses=2)

    def killed(_: VLA) -> dict[str, float]:
        if (tmp_path / "cut" / "step-00000002").exists():
            raise KeyboardInterrupt
        return {}

    whole, again = guesser(), guesser()
    train_grpo(QuestionRun(whole, {"vqa": store}, settings, tmp_path / "whole"), options, nothing)
    with pytest.raises(KeyboardInterrupt):
        train_grpo(QuestionRun(guesser(), {"vqa": store}, settings, tmp_path / "cut"), options, killed)
    train_grpo(QuestionRun(again, {"vqa": store}, settings, tmp_path / "cut"), options, nothing)
    torch.testing.assert_close(again.state_dict(), whole.state_dict(), rtol=0, atol=0)


def pair(chosen: str) -> Pair:
    return Pair(dict, "what is there?", chosen, "", "object")


def test_truth_is_f1_of_objects_or_whether_the_answer_is_right() -> None:
    two = pair("a red cube and a blue ball")
    assert truth(two, [two.chosen, "a red cube", "a red cube and a blue cube", "red cubes"]) == pytest.approx(
        [1, 2 / 3, 1 / 2, 0]
    )
    assert truth(pair("a red cube and another red cube"), ["a red cube"]) == pytest.approx([2 / 3])
    assert truth(pair("two"), ["2", "the two", "three"]) == [1, 1, 0]


def test_options_that_do_not_fit_are_refused(store: VqaStore, make_model: Callable[..., VLA], tmp_path: Path) -> None:
    for wrong, message in (({"group": 1}, "2 answers or more"), ({"reward": str(tmp_path)}, "is not a reward model")):
        with pytest.raises(InputError, match=message):
            run = QuestionRun(make_model(robot=False), {"vqa": store}, plan(), tmp_path / "run")
            train_grpo(run, GrpoOptions(**wrong), nothing)  # type: ignore[arg-type]
    assert not (tmp_path / "run").exists()
