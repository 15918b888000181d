"""The reward model: what it learns of pairs, what it is told, what it saves."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_preference_train import colors, plan

from vla.commands.cli import main
from vla.datasets.preferences import Pair, pairs_of
from vla.datasets.questions import Question
from vla.datasets.vqa import VqaItem, VqaStore
from vla.errors import InputError
from vla.models.vla import VLA
from vla.training.preference.reward import RewardModel, RewardOptions, reward_loss, train_reward
from vla.training.question_run import QuestionRun


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> VqaStore:
    return colors(tmp_path_factory.mktemp("vqa") / "s.zarr")


def small_plan(steps: int, run: Path) -> list[str]:
    """Options of a short run on the command line."""
    fields = {"steps": steps, "batch_size": 4, "evaluate_every": steps, "precision": "fp32", "ema": 0.5}
    return [f"out={run}", "heldout_questions=1", *(f"plan.{name}={value}" for name, value in fields.items())]


def test_the_loss_is_that_of_bradley_and_terry() -> None:
    chosen, rejected = [1.0, -0.5, 0.2], [0.3, 0.5, 0.2]
    rows = list(zip(chosen, rejected, strict=True))
    plain = sum(math.log(1 + math.exp(b - a)) + 0.1 * (a + b) ** 2 for a, b in rows) / 3
    assert reward_loss(torch.tensor(chosen + rejected), 0.1).item() == pytest.approx(plain)


def test_true_answers_are_learned_to_be_better(store: VqaStore, make_model: Callable[..., VLA], tmp_path: Path) -> None:
    outcome = train_reward(
        QuestionRun(make_model(robot=False), {"vqa": store}, plan(), tmp_path), RewardOptions(facts=False)
    )
    last = outcome.evaluations[-1]
    assert last["reward_accuracy"] == last["reward_accuracy/color"] > 0.9 and last["reward_margin"] > 0
    judge, pair = RewardModel.load(tmp_path), pairs_of(store, "held-out")[0]
    assert not judge.facts
    told = judge.judge(pair, [pair.rejected, pair.chosen, pair.chosen])
    assert told[0] < told[1] == pytest.approx(told[2], abs=1e-4)
    assert judge.rewards([pair]).tolist() == pytest.approx([told[1], told[0]], abs=1e-4)


@pytest.mark.slow
def test_facts_alone_tell_the_true_answer(make_model: Callable[..., VLA], tmp_path: Path) -> None:
    """Of pictures in which there is nothing to see."""
    made = VqaStore.create(tmp_path / "s.zarr", ("front",), 8, 8)
    items = []
    for i in range(80):
        color = ("red", "blue")[i % 2]
        grey = np.full((8, 8, 3), i, np.uint8)
        truth = Question("existence", "is it red?", ("yes", "no")[i % 2], "front")
        asked = [Question("caption", "describe it", color, "front"), truth]
        items.append(VqaItem({"front": grey}, tuple(asked), "test"))
    made.append(items)
    assert pairs_of(made, "train")[0].facts in ("red", "blue")
    told = [
        train_reward(
            QuestionRun(make_model(robot=False), {"vqa": made}, plan(steps=60, evaluate_every=60), tmp_path / name),
            RewardOptions(facts=facts),
        )
        for name, facts in (("with", True), ("without", False))
    ]
    informed, blind = (outcome.evaluations[-1]["reward_accuracy"] for outcome in told)
    assert informed > 0.9 and blind < 0.75 and RewardModel.load(tmp_path / "with").facts


def test_a_reward_model_that_was_cut_off_goes_on(
    store: VqaStore, make_model: Callable[..., VLA], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(name: str) -> None:
        train_reward(
            QuestionRun(make_model(robot=False), {"vqa": store}, plan(steps=4, evaluate_every=2), tmp_path / name),
            RewardOptions(),
        )

    def killed(*_: Any) -> dict[str, float]:
        if (tmp_path / "cut" / "step-00000002").exists():
            raise KeyboardInterrupt
        return {"reward_accuracy": 0.5}

    run("whole")
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr("vla.training.preference.reward.by_kind", killed)
        run("cut")
    run("cut")
    whole, cut = (RewardModel.load(tmp_path / name / "step-00000004").state_dict() for name in ("whole", "cut"))
    torch.testing.assert_close(cut, whole, rtol=0, atol=0)


def test_what_is_no_reward_model_is_refused(store: VqaStore, make_model: Callable[..., VLA], tmp_path: Path) -> None:
    make_model(robot=False).save_pretrained(tmp_path / "vlm")
    with pytest.raises(InputError, match="is not a reward model: train one with stage=reward"):
        RewardModel.load(tmp_path / "vlm")
    with pytest.raises(InputError, match=r"reward\.center must be 0 or more"):
        train_reward(
            QuestionRun(make_model(robot=False), {"vqa": store}, plan(), tmp_path / "run"), RewardOptions(center=-1)
        )
    assert not (tmp_path / "run").exists()


def test_facts_stand_behind_the_prompt_where_there_are_any() -> None:
    pair = Pair(dict, "what is there?", "a red cube", "a blue cube", "color", facts="a red cube")
    assert pair.informed().prompt == "what is there? facts: a red cube"
    bare = Pair(dict, "what is there?", "a red cube", "a blue cube", "color")
    assert bare.informed() is bare


def test_both_stages_run_from_the_command_line(
    store: VqaStore, make_model: Callable[..., VLA], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_model(robot=False).save_pretrained(tmp_path / "start")
    base = ["train", f"backbone={tmp_path / 'start'}", f"vqa.vqa={store.path}"]
    assert main([*base, "stage=reward", *small_plan(2, tmp_path / "judge")]) == 0, capsys.readouterr().err
    judged = [f"grpo.reward={tmp_path / 'judge'}", "grpo.group=2", "grpo.max_tokens=3"]
    assert main([*base, "stage=grpo", *judged, *small_plan(2, tmp_path / "run")]) == 0, capsys.readouterr().err
    assert RewardModel.load(tmp_path / "judge").facts
    assert VLA.load((tmp_path / "run" / "best").resolve()).text_vocab
