"""The training configuration: the keys of `plan`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

from vla.errors import InputError, suggestion
from vla.training.augmentation import DEFAULTS, Augmentation
from vla.training.tracking import check_tracker

Precision = Literal["auto", "fp32", "bf16"]
Optimizer = Literal["muon", "adamw"]
Schedule = Literal["cosine", "linear", "constant", "wsd"]


@dataclass(frozen=True)
class TrainConfig:
    """The training configuration; configs/train.yaml describes each key.

    A step has `batch_size` rows, split over the ranks, and on each rank into `accumulate` micro-batches.
    """

    steps: int
    batch_size: int = 48
    accumulate: int = 1
    optimizer: Optimizer = "muon"
    lr: float = 1e-3
    warmup: int = 50
    weight_decay: float = 0.05
    ema: float = 0.995
    clip: float = 1.0
    clip_parts: bool = False
    schedule: Schedule = "cosine"
    floor: float = 0.05
    decay: float = 0.2
    state_dropout: float = 0.0
    camera_dropout: float = 0.0
    history: tuple[float, ...] = ()
    augment: float | Mapping[str, Any] | Augmentation = field(default_factory=lambda: dict(DEFAULTS))
    seed: int = 0
    evaluate_every: int = 300
    freeze: tuple[str, ...] = ()
    lr_multipliers: Mapping[str, float] = field(default_factory=dict)
    loss_weights: Mapping[str, float] = field(default_factory=dict)
    precision: Precision = "auto"
    checkpointing: bool = False
    compile: bool = False
    vqa_margin: float = 0.02
    gradient_report: int | None = None
    loader_workers: int | None = None
    log: str | None = None

    def __post_init__(self) -> None:
        if self.steps < 0 or self.batch_size < 1 or self.accumulate < 1:
            raise InputError(f"steps must be 0 or more, batch_size and accumulate positive: {self}")
        if self.evaluate_every < 1:
            raise InputError(f"evaluate_every must be positive, not {self.evaluate_every}")
        if self.gradient_report is not None and self.gradient_report < 0:
            raise InputError(f"gradient_report must be 0 or more, not {self.gradient_report}")
        if self.loader_workers is not None and self.loader_workers < 0:
            raise InputError(f"loader_workers must be 0 or more, not {self.loader_workers}")
        if self.schedule not in get_args(Schedule):
            raise InputError(f"there is no schedule {self.schedule!r}: choose of {', '.join(get_args(Schedule))}")
        if not 0 <= self.floor <= 1 or not 0 < self.decay <= 1 or self.clip <= 0 or not 0 <= self.state_dropout < 1:
            raise InputError(
                "floor is between 0 and 1, decay above 0 and up to 1, clip above 0, state_dropout at least 0 and below "
                f"1, not {self.floor}, {self.decay}, {self.clip} and {self.state_dropout}"
            )
        if not 0 <= self.camera_dropout < 1:
            raise InputError(f"camera_dropout must be at least 0 and below 1, not {self.camera_dropout}")
        for offset in self.history:
            is_number = isinstance(offset, (int, float)) and not isinstance(offset, bool)
            if not is_number or not 0 < offset < math.inf:
                raise InputError(f"plan.history is a list of seconds above 0, such as [0.5], not {offset!r}")
        if not 0 <= self.ema < 1:
            raise InputError(f"ema must be at least 0 and below 1, not {self.ema}")
        if self.precision not in get_args(Precision):
            raise InputError(f"there is no precision {self.precision!r}: choose of {', '.join(get_args(Precision))}")
        if self.optimizer not in get_args(Optimizer):
            raise InputError(f"there is no optimizer {self.optimizer!r}: choose of {', '.join(get_args(Optimizer))}")
        check_tracker(self.log)
        Augmentation.of(self.augment)
        self.rows(1)

    @property
    def augmentation(self) -> Augmentation:
        return Augmentation.of(self.augment)

    def rows(self, ranks: int) -> int:
        """Rows of a micro-batch on each rank. Raises InputError if the batch does not split evenly."""
        if self.batch_size % (self.accumulate * ranks):
            factor = f" x {ranks} ranks" if ranks > 1 else ""
            raise InputError(f"batch_size {self.batch_size} is not a multiple of accumulate {self.accumulate}{factor}")
        return self.batch_size // (self.accumulate * ranks)


def make_train_config(options: Mapping[str, Any], defaults: Mapping[str, Any] | None = None) -> TrainConfig:
    """Builds the configuration from the keys of `plan`.

    Args:
        options: The keys of `plan`.
        defaults: The values of keys that are null (those of the backbone); else the defaults of `TrainConfig`.

    Raises:
        InputError: an option is unknown or invalid.
    """
    known = [item.name for item in fields(TrainConfig)]
    if wrong := [key for key in options if key not in known]:
        raise InputError(f"there is no option plan.{wrong[0]}{suggestion(wrong[0], known)}; see `vla train --help`")
    if options.get("steps") is None:
        raise InputError("the number of training steps is missing: set plan.steps=")
    defaults = {key: value for key, value in (defaults or {}).items() if key in options}
    values = defaults | {key: value for key, value in options.items() if value is not None}
    multipliers = {
        part: defaults.get("lr_multipliers", {}).get(part) if m is None else m
        for part, m in values.get("lr_multipliers", {}).items()
    }
    values["lr_multipliers"] = {part: m for part, m in multipliers.items() if m is not None}
    return TrainConfig(**values | {name: tuple(values.get(name, ())) for name in ("freeze", "history")})
