"""The defaults of configs/ are those of the dataclasses that they fill."""

from __future__ import annotations

from dataclasses import MISSING, asdict, fields
from typing import Any

from vla.commands.options import compose, values_of
from vla.control.config import LoopConfig
from vla.training.augmentation import Augmentation
from vla.training.train_config import TrainConfig


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
