"""Stages: what each composes to, and that gradients reach exactly what it unfreezes."""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from test_run import options, stores
from test_training import demonstrations, questions

from vla.commands.options import bind, compose
from vla.errors import InputError
from vla.models.vla import VLA
from vla.training.lora import adapt
from vla.training.optimizer import Optimizers, freeze
from vla.training.run import train
from vla.training.run_options import RunOptions
from vla.training.train_config import make_train_config

ALL = {"vision", "connector", "language"}
TRAINED = {
    "align": {"connector"},
    "finetune": {"connector", "language"},
    "instruct": {"connector", "language"},
    "full-finetune": ALL,
    "cotrain": ALL | {"head"},
    "lora": {"lora", "new_rows", "head"},
}


def part_of(name: str) -> str:
    if not name.startswith("backbone."):
        return "head"
    return next((kind for kind in ("lora", "new_rows") if f"{kind}" in name), name.split(".")[1])


def test_every_stage_is_tried() -> None:
    stages = {Path(str(file)).stem for file in (files("vla.configs") / "stage").iterdir()}
    # Those with losses of their own have tests of their own.
    assert stages == TRAINED.keys() | {"contrastive", "preference", "reward", "grpo"}


def test_the_recipe_of_stages_holds_what_each_stage_says() -> None:
    config: Any = OmegaConf.to_container(compose("train", ["recipe=vlm-nano"]), resolve=True)
    assert list(config["stages"]) == ["contrastive", "align", "instruct", "preference"]
    for name, changes in config["stages"].items():
        alone: Any = OmegaConf.to_container(compose("train", [f"stage={name}"]), resolve=True)
        assert changes["plan"]["optimizer"] == alone["plan"]["optimizer"]
        assert changes["mixture"] == alone["mixture"] and changes["data"] is None
        assert changes.get("contrastive") == alone["contrastive"]
        if name in ("align", "instruct"):
            assert changes["plan"]["freeze"] == alone["plan"]["freeze"]
        if name == "preference":  # which here trains the encoder too, and keeps descriptions whole
            assert changes["plan"]["freeze"] == []
            assert changes["preference"] == alone["preference"] | {"losses": {"sigmoid": 1, "sft": 1}}
    bind(train, compose("train", ["recipe=vlm-nano"]))


@pytest.mark.parametrize("stage", TRAINED)
def test_gradients_reach_what_the_stage_trains(make_model: Callable[..., VLA], stage: str) -> None:
    config = compose("train", [f"stage={stage}"])
    bind(train, config)
    values: Any = OmegaConf.to_container(config, resolve=True)
    policy = values["mixture"]["robot"] > 0
    assert (values["data"] is not None) == policy
    assert "head" in TRAINED[stage] if policy else values["mixture"]["vqa"] > 0
    plan = make_train_config(values["plan"])
    model = make_model(robot=policy).train()
    if values["lora"] is not None:
        adapt(model, **values["lora"])
    freeze(model, plan.freeze)
    batch = model.processor.batch([*(demonstrations() if policy else ()), *questions()])
    model(batch)[0].mean().backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None}
    assert {part_of(name) for name in reached} == TRAINED[stage]
    # All of a part that trains, and all that the optimizer has.
    assert {n for n, p in model.named_parameters() if p.requires_grad} == reached
    assert {n for n in reached if part_of(n) in ALL} == {
        n for n, _ in model.named_parameters() if part_of(n) in TRAINED[stage] & ALL
    }
    assert Optimizers(model, plan.weight_decay, plan.lr_multipliers, plan.optimizer).kinds.keys() == reached


def test_what_is_given_by_hand_goes_before_the_stage() -> None:
    config = compose("train", ["stage=finetune", "plan.freeze=[]", "plan.lr=1e-6", "data=a.zarr"])
    assert (config.plan.freeze, config.plan.lr, config.data) == ([], 1e-6, "a.zarr")
    assert compose("train", []).lora is None


@pytest.mark.parametrize("lora", [{"rank": 4}, {"ranks": 4}])
def test_adapters_of_nothing_are_refused(
    make_episode: Callable[..., Any], tmp_path: Path, lora: dict[str, Any]
) -> None:
    data = stores(make_episode, tmp_path)["first"]
    chosen: dict[str, Any] = {"rank": {"backbone": "scratch"}, "ranks": {"backbone": "nano"}}[next(iter(lora))]
    with pytest.raises(InputError, match="lora (adapts a pretrained|takes rank, alpha and targets, not ranks)"):
        train(RunOptions(**options(data, tmp_path / "a", lora=lora) | chosen))  # type: ignore[arg-type]
    assert not (tmp_path / "a").exists()


def test_a_policy_is_trained_through_adapters_of_nano(make_episode: Callable[..., Any], tmp_path: Path) -> None:
    data = stores(make_episode, tmp_path)["first"]
    plan = {"steps": 2, "batch_size": 2, "precision": "fp32", "checkpointing": True}
    outcome = train(RunOptions(**options(data, tmp_path / "a", backbone="nano", lora={"rank": 2}, plan=plan)))
    assert outcome.best is not None
    base, ours = (VLA.load(f) for f in (Path(str(files("vla") / "assets" / "nano")), outcome.best))
    before, after = base.state_dict(), ours.state_dict()
    changed = {n for n, w in before.items() if w.shape == after[n].shape and not (w == after[n]).all()}
    linear = {f"{n}.weight" for n, m in base.named_modules() if isinstance(m, torch.nn.Linear)}
    assert changed <= linear and {n.split(".")[1] for n in changed} == {"vision", "connector", "language"}
    for name in ("embed_tokens.weight", "lm_head.weight"):
        (key,) = [n for n in before if n.endswith(name)]
        assert (after[key][: len(before[key])] == before[key]).all()
