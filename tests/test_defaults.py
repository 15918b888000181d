"""The defaults of configs/ are those of the dataclasses that they fill."""

from __future__ import annotations

from dataclasses import MISSING, asdict, fields
from typing import Any

import pytest

from vla.commands.options import compose, values_of
from vla.control.config import LoopConfig
from vla.training.augmentation import Augmentation
from vla.training.run_options import RunOptions
from vla.training.train_config import TrainConfig
from vla.training.trainers import TRAINERS


def defaults(kind: Any) -> dict[str, Any]:
    """The defaults of a dataclass, but for fields that have none."""
    found = {}
    for field in fields(kind):
        if field.default is not MISSING:
            found[field.name] = field.default
        elif field.default_factory is not MISSING:
            found[field.name] = field.default_factory()
    return found


def test_the_plan_of_train_is_that_of_train_config() -> None:
    plan, expected = values_of(compose("train", []))["plan"], defaults(TrainConfig)
    assert asdict(Augmentation.of(plan.pop("augment"))) == asdict(Augmentation.of(expected.pop("augment")))
    multipliers = plan.pop("lr_multipliers")
    assert set(multipliers.values()) == {None} and expected.pop("lr_multipliers") == {}
    assert plan.pop("steps") > 0 and "steps" not in expected
    assert expected.pop("log") is None  # an option of its own
    # What is null is as the backbone was trained (`vla.training.backbone_defaults`).
    of_backbone = {name for name, value in plan.items() if value is None and expected[name] is not None}
    assert of_backbone == {"optimizer", "lr", "weight_decay", "freeze"}
    assert {n: tuple(v) if isinstance(v, list) else v for n, v in plan.items() if n not in of_backbone} == {
        n: v for n, v in expected.items() if n not in of_backbone
    }


def test_the_loop_of_deploy_is_that_of_loop_config() -> None:
    loop, expected = values_of(compose("deploy", ["policy=hold"]))["loop"], defaults(LoopConfig)
    assert expected.pop("faults") > 0  # no option
    assert loop == expected


OF_STAGE = {
    "contrastive": {"loss": "clip"},
    "preference": {"beta": 0.5, "weight": 5, "average": True},  # RLHF-V; the defaults are plain DPO
}
"""What a stage sets otherwise than the defaults of its trainer."""


@pytest.mark.parametrize("name", [name for name, trainer in TRAINERS.items() if trainer.options])
def test_the_options_of_a_stage_are_those_of_its_trainer(name: str) -> None:
    options = values_of(compose("train", [f"stage={name}"]))[name]
    set_by_stage = {key: options[key] for key in OF_STAGE.get(name, {})}
    assert set_by_stage == OF_STAGE.get(name, {})
    expected = defaults(TRAINERS[name].options) | set_by_stage
    assert {n: tuple(v) if isinstance(v, list) else v for n, v in options.items()} == expected


def test_a_run_has_the_options_of_train() -> None:
    assert values_of(compose("train", [])).keys() == {field.name for field in fields(RunOptions)}
