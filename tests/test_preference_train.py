"""The preference stage on a small model, and its losses against trl's."""

from __future__ import annotations

import math
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vla.commands.options import compose
from vla.datasets.preferences import Pair, pairs_of
from vla.datasets.questions import Question
from vla.datasets.vqa import VqaItem, VqaStore
from vla.errors import InputError
from vla.models.vla import VLA
from vla.training.preference.losses import Objective, preference_loss, token_logps
from vla.training.preference.train import PreferenceOptions, pair_loss, train_preference
from vla.training.question_run import QuestionRun
from vla.training.train_config import TrainConfig

COLORS = {"red": (220, 20, 20), "blue": (20, 20, 220)}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> VqaStore:
    return colors(tmp_path_factory.mktemp("vqa") / "s.zarr")


def colors(path: Path) -> VqaStore:
    """Pictures of one color each, and the question which it is."""
    made = VqaStore.create(path, ("front",), 32, 32)
    rng, items = np.random.default_rng(0), []
    for i in range(80):
        color = ("red", "blue")[i % 2]
        image = np.clip(COLORS[color] + rng.integers(-20, 20, (32, 32, 3)), 0, 255).astype(np.uint8)
        asked = Question("color", "what color is the cube?", color, "front")
        items.append(VqaItem({"front": image}, (asked,), "test"))
    made.append(items)
    return made


def plan(**changes: Any) -> TrainConfig:
    defaults: dict[str, Any] = {"steps": 30, "batch_size": 8, "lr": 3e-3, "warmup": 2, "weight_decay": 0.0}
    defaults |= {"ema": 0.5, "augment": 0.0, "evaluate_every": 15, "optimizer": "adamw", "precision": "fp32"}
    return TrainConfig(**defaults | changes)


def nothing(_: VLA) -> dict[str, float]:
    return {}


def test_the_true_answer_becomes_the_preferred(store: VqaStore, make_model: Callable[..., VLA], tmp_path: Path) -> None:
    model = make_model(robot=False)
    options = PreferenceOptions(weight=5, average=True, beta=0.5)
    outcome = train_preference(QuestionRun(model, {"vqa": store}, plan(), tmp_path), options, nothing)
    first, last = outcome.evaluations
    assert last["preference_accuracy"] > 0.9 and last["preference_margin"] > first["preference_margin"] > 0
    assert last["preference_accuracy/color"] == last["preference_accuracy"]
    assert outcome.best is not None and VLA.load(outcome.best).backbone.config == model.backbone.config


def test_a_run_that_was_cut_off_goes_on(store: VqaStore, make_model: Callable[..., VLA], tmp_path: Path) -> None:
    whole, cut = make_model(robot=False), make_model(robot=False)
    train_preference(
        QuestionRun(whole, {"vqa": store}, plan(steps=4, evaluate_every=2), tmp_path / "a"),
        PreferenceOptions(),
        nothing,
    )

    def killed(_: VLA) -> dict[str, float]:
        if (tmp_path / "b" / "step-00000002").exists():
            raise KeyboardInterrupt
        return {}

    with pytest.raises(KeyboardInterrupt):
        train_preference(
            QuestionRun(cut, {"vqa": store}, plan(steps=4, evaluate_every=2), tmp_path / "b"),
            PreferenceOptions(),
            killed,
        )
    again = make_model(robot=False)
    train_preference(
        QuestionRun(again, {"vqa": store}, plan(steps=4, evaluate_every=2), tmp_path / "b"),
        PreferenceOptions(),
        nothing,
    )
    torch.testing.assert_close(again.state_dict(), whole.state_dict(), rtol=0, atol=0)


def test_a_signal_stops_a_run_after_its_step(store: VqaStore, make_model: Callable[..., VLA], tmp_path: Path) -> None:
    def stop(_: VLA) -> dict[str, float]:
        signal.raise_signal(signal.SIGTERM)
        return {}

    run = QuestionRun(make_model(robot=False), {"vqa": store}, plan(steps=4, evaluate_every=2), tmp_path)
    outcome = train_preference(run, PreferenceOptions(), stop)
    assert (outcome.step, outcome.finished, outcome.best) == (2, False, tmp_path / "step-00000002")


def test_micro_batches_have_the_gradient_of_the_whole(store: VqaStore, make_model: Callable[..., VLA]) -> None:
    pairs, models = pairs_of(store, "train")[:4], [make_model(robot=False) for _ in range(2)]
    reference = make_model(robot=False, seed=1)
    pair_loss(models[0], reference, pairs, Objective())[0].backward()
    for part in (pairs[:2], pairs[2:]):
        (pair_loss(models[1], reference, part, Objective())[0] / 2).backward()
    for whole, parts in zip(models[0].parameters(), models[1].parameters(), strict=True):
        if whole.grad is not None:
            torch.testing.assert_close(parts.grad, whole.grad, rtol=1e-4, atol=1e-6)


def test_log_probabilities_are_those_of_the_loss(make_model: Callable[..., VLA]) -> None:
    model, images = make_model(robot=False), {"front": np.full((32, 32, 3), 90, np.uint8)}
    pair = Pair(lambda: images, "what color is the cube?", "red", "blue", "color", (("where is it?", "lift"),))
    batch = model.processor.batch(pair.examples())
    alone = Pair(lambda: images, "what color is the cube?", "red", "blue", "color")
    short = model.processor.batch(alone.examples())
    losses, rows, _ = model(short)
    summed = -token_logps(model, short).sum(1)
    torch.testing.assert_close(summed, torch.stack([losses[rows == row].sum() for row in range(2)]))
    # What was said before is given: it has no part in the log-probability, and is seen.
    found = token_logps(model, batch)
    assert (found != 0).sum() == (token_logps(model, short) != 0).sum()
    assert not torch.allclose(found.sum(1), -summed)


def test_pairs_are_the_same_for_the_same_seed(store: VqaStore) -> None:
    first, again = ([(p.prompt, p.chosen, p.rejected) for p in pairs_of(store, "train", 3)] for _ in range(2))
    assert first == again and all(chosen != rejected for _, chosen, rejected in first)


@pytest.mark.parametrize("kind, pairs", [("detail", False), ("existence", False), ("detail", True)])
def test_a_caption_makes_a_pair_only_beside_a_detailed_description(kind: str, pairs: bool, tmp_path: Path) -> None:
    store = VqaStore.create(tmp_path / "s.zarr", ("front",), 8, 8)
    asked = [Question("caption", "describe the image", "a red cube", "front")]
    if pairs:
        asked.append(Question(kind, "describe it in detail", "there is one object. a red cube", "front"))
    store.append([VqaItem({"front": np.zeros((8, 8, 3), np.uint8)}, tuple(asked), "test")])
    made = [*pairs_of(store, "train"), *pairs_of(store, "held-out")]
    assert ("describe the image" in {pair.prompt for pair in made}) == pairs


def test_too_few_pairs_are_refused_before_anything_is_written(
    store: VqaStore, make_model: Callable[..., VLA], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="pairs to train on"):
        train_preference(
            QuestionRun(make_model(robot=False), {"vqa": store}, plan(batch_size=500), tmp_path / "run"),
            PreferenceOptions(),
            nothing,
        )
    assert not (tmp_path / "run").exists()


def test_every_method_of_the_docs_can_be_said() -> None:
    docs = (Path(__file__).parents[1] / "docs" / "training.md").read_text()
    table = docs.partition("| method | `preference.` |")[2].partition("\n\n")[0]
    told = [re.findall("`(.+?)`", row) for row in table.splitlines()[2:]]
    found = [compose("train", ["stage=preference", *(f"preference.{one}" for one in row)]).preference for row in told]
    made = [PreferenceOptions(**one) for one in found]
    assert len(made) == 5 and [one.losses for one in made][-1] == MPO
    assert all(one.losses == {"sigmoid": 1} for one in made[:-1])


MPO = {"sigmoid": 0.8, "bco_pair": 0.2, "sft": 1.0}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("losses", [{"sigmoid": 1.0}, {"bco_pair": 1.0}, MPO])
def test_the_loss_is_trls(losses: dict[str, float], tmp_path: Path) -> None:
    trl = pytest.importorskip("trl")
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = Tokenizer(
        models.WordLevel({w: i for i, w in enumerate(["[PAD]", "[EOS]", "is", "it", "red", "blue", "green", "a"])})
    )
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", eos_token="[EOS]")
    shape = {"vocab_size": 8, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    policy, reference = (
        LlamaForCausalLM(LlamaConfig(**shape, num_attention_heads=2, initializer_range=0.5)) for _ in range(2)
    )
    rows = [("is it", " red", " a blue"), ("is it a", " green green", " red")]
    data = Dataset.from_list([dict(zip(("prompt", "chosen", "rejected"), row, strict=True)) for row in rows])
    settings = trl.DPOConfig(
        output_dir=str(tmp_path),
        loss_type=list(losses),
        loss_weights=list(losses.values()),
        beta=0.3,
        per_device_train_batch_size=2,
        use_cpu=True,
        bf16=False,
        report_to="none",
        gradient_checkpointing=False,
    )
    trainer = trl.DPOTrainer(policy, reference, settings, train_dataset=data, processing_class=tokenizer)
    inputs = next(iter(trainer.get_train_dataloader()))
    told = trainer.compute_loss(policy, inputs).item()

    ids, answered = inputs["input_ids"], inputs["completion_mask"][:, 1:].float()
    logps = [
        model(input_ids=ids, attention_mask=inputs["attention_mask"])
        .logits[:, :-1]
        .log_softmax(-1)
        .gather(2, ids[:, 1:, None])[..., 0]
        for model in (policy, reference)
    ]
    ours, _ = preference_loss(logps[0], logps[1], answered, Objective(losses, beta=0.3))
    assert math.isclose(ours.item(), told, rel_tol=1e-4)
