"""The contrastive stage: what it learns, what it saves, and the stages that follow it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from vla.datasets.questions import Question
from vla.datasets.vqa import CONVERSATION, VqaItem, VqaStore
from vla.errors import InputError
from vla.models.vla import VLA
from vla.training.contrastive.encoder import MAX_LOG_SCALE, STARTS, ContrastiveOptions, PairEncoder, tokens
from vla.training.contrastive.train import train_contrastive
from vla.training.contrastive.zero_shot import recall, zero_shot
from vla.training.question_run import QuestionRun
from vla.training.run import train
from vla.training.run_options import RunOptions
from vla.training.train_config import TrainConfig

COLORS = {"red": (220, 20, 20), "green": (20, 220, 20), "blue": (20, 20, 220)}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def store(tmp_path: Path) -> VqaStore:
    """Pictures of one color each, with a caption, a conversation and a short question."""
    made = VqaStore.create(tmp_path / "scenes.zarr", ("front",), 32, 32)
    rng = np.random.default_rng(0)
    items = []
    for i in range(80):
        name = list(COLORS)[i % 3]
        image = np.clip(np.array(COLORS[name]) + rng.integers(-20, 20, (32, 32, 3)), 0, 255).astype(np.uint8)
        asked = [("caption", "describe the image", f"a {name} cube"), ("color", "what color is the cube?", name)]
        asked += [(CONVERSATION, "what is there?", f"a {name} cube"), (CONVERSATION, "its color?", name)]
        items.append(VqaItem({"front": image}, tuple(Question(*each, "front") for each in asked), "scenes"))
    made.append(items)
    return made


def plan(**fields: Any) -> TrainConfig:
    values: dict[str, Any] = {"steps": 60, "batch_size": 12, "optimizer": "adamw", "lr": 1e-2, "warmup": 5}
    return TrainConfig(**(values | {"ema": 0.9, "evaluate_every": 60, "precision": "fp32", "augment": 0.0} | fields))


@pytest.mark.parametrize(
    "loss", [pytest.param(name, marks=[pytest.mark.slow] if i else []) for i, name in enumerate(STARTS)]
)
def test_pictures_are_told_apart_by_their_names(
    make_model: Callable[..., VLA], store: VqaStore, tmp_path: Path, loss: str
) -> None:
    outcome = train_contrastive(
        QuestionRun(make_model(robot=False), {"s": store}, plan(), tmp_path / "a"),
        ContrastiveOptions(loss=loss, chunk=5),
    )
    (scores,) = outcome.evaluations
    assert scores["class"] > 0.9 > scores["class_chance"]
    assert scores["text_recall@1"] > 0.9 and scores["image_recall@1"] > 0.9
    # The same again trains nothing, and knows how it went.
    again = QuestionRun(make_model(robot=False), {"s": store}, plan(), tmp_path / "a")
    assert train_contrastive(again, ContrastiveOptions(loss=loss)) == outcome


def test_it_trains_the_encoder_alone_and_none_where_that_is_frozen(
    make_model: Callable[..., VLA], store: VqaStore, tmp_path: Path
) -> None:
    before = make_model(robot=False).state_dict()
    for freeze in ((), ("vision",)):
        run = tmp_path / f"run{len(freeze)}"
        short = plan(steps=2, freeze=freeze)
        outcome = train_contrastive(
            QuestionRun(make_model(robot=False), {"s": store}, short, run), ContrastiveOptions(noise=0.5)
        )
        assert outcome.best is not None
        after = VLA.load(outcome.best).state_dict()
        changed = {name for name, weight in before.items() if not torch.equal(weight, after[name])}
        assert all(name.startswith("backbone.vision.") for name in changed) and bool(changed) == (not freeze)
        assert not any(name.startswith("vision") for name in load_file(outcome.best / "text_encoder.safetensors"))


def test_where_each_loss_starts_and_where_clip_is_clamped(make_model: Callable[..., VLA]) -> None:
    vision = make_model(robot=False).backbone.vision
    starts = {kind: PairEncoder(vision, 99, ContrastiveOptions(kind)) for kind in STARTS}
    scales = {kind: made.logit_scale.item() for kind, made in starts.items()}
    assert scales == pytest.approx({"clip": 1 / 0.07, "align": 1.0, "siglip": 10.0})
    assert starts["siglip"].logit_bias.item() == -10
    assert not starts["clip"].logit_bias.requires_grad
    with torch.no_grad():
        starts["clip"].log_scale.fill_(9.0)
    starts["clip"].clamp()
    assert starts["clip"].log_scale.item() == pytest.approx(MAX_LOG_SCALE) == math.log(100)
    with pytest.raises(InputError, match="clip, align, siglip, not dino"):
        ContrastiveOptions("dino")


def test_padding_changes_no_text(make_model: Callable[..., VLA]) -> None:
    model = make_model(robot=False)
    both = PairEncoder(model.backbone.vision, model.processor.text_vocab, ContrastiveOptions()).eval()
    short, long = "red", "what color is the cube? blue blue blue"
    alone, together = (
        both.encode_texts(*tokens(model.processor.tokenizer, texts, 64)) for texts in ([short], [short, long])
    )
    torch.testing.assert_close(alone[0], together[0])
    assert tokens(model.processor.tokenizer, [long], 3)[0].shape == (1, 3)


def test_recall_counts_rows_with_a_right_one_among_the_best() -> None:
    similarity = torch.tensor([[0.9, 0.1, 0.0], [0.8, 0.5, 0.1], [0.9, 0.8, 0.1]])
    right = torch.eye(3, dtype=torch.bool)
    assert [recall(similarity, right, k) for k in (1, 2, 9)] == pytest.approx([1 / 3, 2 / 3, 1])


def test_equal_captions_are_as_right_and_classes_are_what_captions_name() -> None:
    captions = ["a red cube", "a red cube", "a blue ball and a red cube"]
    vectors = {"a red cube": (1.0, 0.0), "a blue ball": (0.0, 1.0), captions[2]: (0.7, 0.7)}
    images = torch.tensor([(1.0, 0.0), (1.0, 0.0), (0.0, 1.0)])
    scores = zero_shot(images, captions, lambda texts: torch.tensor([vectors[text] for text in texts]))
    assert scores["text_recall@1"] == scores["class"] == 1 and scores["class_chance"] == pytest.approx(4 / 6)


def options(store: VqaStore, out: Path, **fields: Any) -> dict[str, Any]:
    small = {"steps": 2, "batch_size": 4, "precision": "fp32", "optimizer": "adamw", "evaluate_every": 2, "augment": 0}
    values: dict[str, Any] = {"data": None, "vqa": {"vqa": store.path}, "out": str(out), "mixture": {"vqa": 1.0}}
    values |= {"horizon": 3, "turns": 4, "heldout_questions": 2, "plan": small}
    return values | fields


def weights(run: Path) -> Mapping[str, torch.Tensor]:
    return VLA.load(run / "best").state_dict()


def test_stages_go_on_from_each_other_with_the_encoder_frozen_after_the_first(
    make_model: Callable[..., VLA], store: VqaStore, tmp_path: Path
) -> None:
    make_model(robot=False).save_pretrained(tmp_path / "start")
    frozen = ["vision", "language"]
    stages = {
        "contrastive": {"contrastive": {"loss": "clip"}},
        "align": {"kinds": {"vqa": ["caption"]}, "plan": {"freeze": frozen}},
        "instruct": {"plan": {"freeze": ["vision"]}},
    }
    given = options(store, tmp_path / "run", backbone=str(tmp_path / "start"), stages=stages)
    outcome = train(RunOptions(**given))
    assert outcome.finished and outcome.best is not None and outcome.best.parent.name == "instruct"
    assert f"vqa/{CONVERSATION}" in outcome.evaluations[-1]
    told = [weights(tmp_path / "run" / name) for name in stages]
    told.insert(0, VLA.load(tmp_path / "start").state_dict())
    changed = [
        {n.split(".")[1] for n, w in a.items() if not torch.equal(w, b[n])}
        for a, b in zip(told, told[1:], strict=False)
    ]
    assert changed == [{"vision"}, {"connector"}, {"connector", "language"}]
    assert train(RunOptions(**given)).step == 2  # again: nothing is left to do


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"contrastive": {}, "plan": {"steps": 1, "batch_size": 99, "optimizer": "adamw", "augment": 0.1}},
            "questions=instruct",
        ),
        ({"contrastive": {"noise": 1.0}}, "noise is a share"),
        ({"contrastive": {}, "plan": {"steps": 1, "batch_size": 4}}, "only plan.optimizer=adamw"),
        ({"contrastive": {"depth": 3}}, "takes .* not depth"),
        ({"stages": {"align": {"plans": {}}}}, "stage align has plans: vla train has no such option"),
    ],
)
def test_what_does_not_fit_is_refused(
    make_model: Callable[..., VLA], store: VqaStore, tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    make_model(robot=False).save_pretrained(tmp_path / "start")
    with pytest.raises(InputError, match=message):
        train(RunOptions(**options(store, tmp_path / "run", backbone=str(tmp_path / "start")) | fields))
    assert not (tmp_path / "run").exists()
