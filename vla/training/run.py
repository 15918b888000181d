"""`vla train`: trains a model on stores."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from vla.errors import InputError
from vla.evaluation.vlm.answerer import weights_of
from vla.models.build import build
from vla.models.continued import Ranges
from vla.models.vla import VLA
from vla.training.action_head import head_settings
from vla.training.backbone_defaults import backbone_defaults
from vla.training.chain import chain
from vla.training.distributed import join
from vla.training.loop import Outcome
from vla.training.lora import adapt
from vla.training.run_data import RunData
from vla.training.run_options import RunOptions
from vla.training.train_config import TrainConfig, make_train_config
from vla.training.trainers import Run, select

SCRATCH = "scratch"
NOT_ORIGIN = ("task", "out", "plan", "log", "stages", "probe_scenes")
"""Options that are not recorded as the origin of a run."""


def train(options: RunOptions) -> Outcome:
    """Trains a model on episodes and questions, and writes its checkpoints to a folder.

    Raises:
        InputError: a path is missing or options are inconsistent; before anything is written.
    """
    if options.stages:
        return chain(train, options, options.stages)
    options.check()
    plan, train_run = _plan(options), select(options)
    torch.manual_seed(plan.seed)
    data = RunData.open(options)
    model = _model(data, plan)
    plan = _plan(options, model)
    if join().first:
        print(_optimizer_summary(plan), flush=True)
    if options.lora is not None:
        if options.backbone == SCRATCH:
            raise InputError("lora adapts a pretrained backbone, and scratch is not: set lora=null")
        adapt(model, **options.lora)
    return train_run(Run(model, data, plan, Path(options.out), _origin(data)))


def _plan(options: RunOptions, model: VLA | None = None) -> TrainConfig:
    """The training configuration, with the defaults of the backbone of `model`. Raises InputError if it is invalid."""
    scratch = options.backbone == SCRATCH
    defaults = None if model is None else backbone_defaults(model.backbone, scratch=scratch)
    plan = make_train_config({**options.plan, "log": options.log}, defaults)
    if plan.state_dropout and options.state_encoding != "numbers":
        raise InputError(
            f"state_dropout needs state_encoding=numbers: state_encoding={options.state_encoding} writes the state as "
            "text"
        )
    # From scratch, there are no pretrained weights to protect.
    return replace(plan, freeze=(), lr_multipliers={}) if defaults is not None and scratch else plan


def _model(data: RunData, plan: TrainConfig) -> VLA:
    """The model before training."""
    options, demonstrations = data.options, list(data.demonstrations.values())
    robots = data.robots(plan)
    head = head_settings(options.head, demonstrations, robots)
    ranges = Ranges(options.statistics, options.predict, options.normalization)
    model = build(options.backbone, robots, data.texts(), head, options.state_encoding, options.tiles, ranges)
    model.processor.tasks = tuple(sorted({*model.processor.tasks, *data.tasks()}))
    return model


def _origin(data: RunData) -> dict[str, Any]:
    """Where the model and the data of a run come from."""
    options = {**vars(data.options), "horizon": data.horizon}
    origin = {name: value for name, value in options.items() if value and name not in NOT_ORIGIN}
    backbone, grpo = data.options.backbone, data.options.grpo
    origin["backbone_weights"] = weights_of(backbone) if isinstance(backbone, str) else None
    if grpo and Path(judge := str(grpo.get("reward"))).is_dir():
        origin["reward_weights"] = weights_of(judge)
    return origin


def _optimizer_summary(plan: TrainConfig) -> str:
    """One line with the optimizer, the learning rates and the frozen parts."""
    frozen = ", ".join(plan.freeze) or "nothing"
    scales = "".join(f", {part} {scale:g} of it" for part, scale in plan.lr_multipliers.items() if scale != 1)
    return f"{plan.optimizer}, learning rate {plan.lr:g}{scales}; frozen: {frozen}"
