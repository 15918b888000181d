"""What a backbone trains with where the plan is null: nano's frozen parts are no other's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_pretrained import released
from test_run import options, stores
from tiny_families import MODELS

from vla.commands import cli
from vla.commands.options import compose, values_of
from vla.errors import InputError
from vla.models.backbones import catalog
from vla.models.backbones.pretrained import open_backbone
from vla.models.vla import VLA
from vla.training.backbone_defaults import backbone_defaults
from vla.training.optimizer import Optimizers, freeze
from vla.training.run import train
from vla.training.run_options import RunOptions
from vla.training.train_config import TrainConfig, make_train_config

DEFAULTS: dict[str, Any] = values_of(compose("train", []))["plan"]
NANO = ("vision.embeddings", "vision.encoder.stages.0", "vision.encoder.stages.1")


def own(model: VLA, **plan: Any) -> TrainConfig:
    """The plan of `vla train` for the model's backbone, which it must be able to train with."""
    made = make_train_config(DEFAULTS | plan, backbone_defaults(model.backbone))
    freeze(model, made.freeze)
    Optimizers(model, made.weight_decay, made.lr_multipliers, made.optimizer)
    return made


def test_nano_has_its_own() -> None:
    made = make_train_config(DEFAULTS, backbone_defaults(VLA(*open_nano()).backbone))
    assert made.freeze == NANO == catalog.family("nano").freezes
    assert (made.optimizer, made.lr, made.weight_decay) == ("muon", 1e-3, 0.05)
    assert made.lr_multipliers == {"vision": 0.5, "connector": 0.5, "language": 0.5}
    scratch = make_train_config(DEFAULTS, backbone_defaults(VLA(*open_nano()).backbone, scratch=True))
    assert (scratch.freeze, scratch.lr_multipliers, scratch.lr) == ((), {}, 1e-3)


def open_nano() -> Any:
    from vla.models.backbones.nano import nano, train_tokenizer

    return nano(train_tokenizer(["a red cube"]))


def test_a_composed_backbone_trains_whole_its_connector_at_the_heads_rate(make_model: Callable[..., VLA]) -> None:
    made = own(make_model())
    assert made.freeze == () and (made.optimizer, made.lr) == ("adamw", 1e-4)
    assert made.lr_multipliers == {"vision": 0.2, "connector": 1.0, "language": 0.2}


@pytest.mark.parametrize("name", sorted(MODELS))
def test_every_family_can_be_trained_with_its_own(name: str, tmp_path: Path) -> None:
    backbone, processor = open_backbone(str(released(name, tmp_path / "released")))
    made = own(VLA(backbone, processor))
    assert (
        made.freeze == ()
        and made.optimizer == "adamw"
        and set(made.lr_multipliers) <= set(backbone.freezable_modules())
    )


def test_what_is_given_goes_before_it(make_model: Callable[..., VLA]) -> None:
    scales = DEFAULTS["lr_multipliers"] | {"vision": 0.05, "head": 3.0}
    made = own(make_model(), lr=3e-4, freeze=["vision"], lr_multipliers=scales, weight_decay=0.0)
    assert (made.lr, made.freeze, made.weight_decay) == (3e-4, ("vision",), 0.0)
    assert made.lr_multipliers == {"vision": 0.05, "connector": 1.0, "language": 0.2, "head": 3.0}
    # Of a plan that does not name them at all, `TrainConfig`'s own defaults hold.
    assert make_train_config({"steps": 1}, backbone_defaults(make_model().backbone)) == TrainConfig(1)


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        ({"stesp": 3}, "plan.stesp.*did you mean 'steps'"),
        ({"steps": None}, "plan.steps="),
        ({"lr": 1.0}, "plan.steps="),
    ],
)
def test_a_plan_that_is_none_is_refused(plan: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        make_train_config(plan)


def test_another_backbone_than_nano_trains_without_a_stage(
    make_episode: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = stores(make_episode, tmp_path)["first"]
    released("smolvlm", tmp_path / "smolvlm")
    small = ["horizon=3", "plan.steps=2", "plan.batch_size=2", "plan.precision=fp32", "plan.evaluate_every=2"]
    command = ["train", f"data={data}", "mixture.vqa=0", f"backbone={tmp_path / 'smolvlm'}", "head=flow", *small]
    assert cli.main([*command, f"out={tmp_path / 'out'}"]) == 0
    assert "adamw, learning rate 0.0001" in (shown := capsys.readouterr().out) and "frozen: nothing" in shown
    assert cli.main([*command, f"out={tmp_path / 'other'}", "plan.freeze=[vision.embeddings.nose]"]) == 2
    said = capsys.readouterr().err
    assert "cannot freeze vision.embeddings.nose" in said and "vision.embeddings.patch_embedding" in said
    assert not (tmp_path / "other").exists()


def test_nano_says_what_it_freezes(
    make_episode: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = stores(make_episode, tmp_path)["first"]
    plan = DEFAULTS | {"steps": 1, "batch_size": 2, "precision": "fp32"}
    train(RunOptions(**options(data, tmp_path / "out", backbone="nano", plan=plan)))
    assert f"frozen: {', '.join(NANO)}" in capsys.readouterr().out
