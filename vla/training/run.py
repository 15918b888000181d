"""`vla train`: trains a model on stores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from vla.common.renamed_keys import HEAD, current_keys
from vla.errors import InputError
from vla.evaluation.vlm.answerer import weights_of
from vla.models.build import build
from vla.models.continued import Ranges
from vla.models.processor import Processor
from vla.models.released.registry import policy_defaults
from vla.models.robot_spec import RobotSpec
from vla.models.vla import VLA
from vla.training.action_head import check_fast, head_settings
from vla.training.backbone_defaults import backbone_defaults
from vla.training.chain import chain
from vla.training.checkpoint import latest
from vla.training.distributed import join
from vla.training.loop import Outcome
from vla.training.lora import adapt
from vla.training.released_options import with_policy_options
from vla.training.run_data import RunData
from vla.training.run_options import RunOptions
from vla.training.soup import checkpoints_of, cook, parents_of
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
    options = with_policy_options(options)
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
    as_numbers = model is None or not model.processor.robots or model.processor.state_width > 0
    if plan.state_dropout and (options.state_encoding == "text" or not as_numbers):
        raise InputError("state_dropout needs the state as numbers (state_encoding), and this policy has none")
    # From scratch, there are no pretrained weights to protect.
    return replace(plan, freeze=(), lr_multipliers={}) if defaults is not None and scratch else plan


def _model(data: RunData, plan: TrainConfig) -> VLA:
    """The model before training."""
    options, demonstrations = data.options, list(data.demonstrations.values())
    robots = data.robots(plan)
    settings = {"kind": options.head} if isinstance(options.head, str) else current_keys(options.head or {}, HEAD)
    ranges = Ranges(options.statistics, options.predict, options.normalization)

    def complete(settings: Mapping[str, Any], robots: Sequence[RobotSpec]) -> dict[str, Any]:
        return head_settings(settings, demonstrations, robots)

    def make(backbone: str | Mapping[str, Any]) -> VLA:
        texts, encoding, tiles = data.texts(), options.state_encoding, options.tiles
        return build(backbone, robots, texts, settings, encoding, tiles, ranges, complete)

    model = make(options.backbone) if isinstance(options.backbone, str | Mapping) else _average(data, plan, make)
    for folder in checkpoints_of(options.backbone)[:1] if robots else ():
        known = Processor.load(folder)
        if known.head is not None and known.head.settings["kind"] == settings["kind"]:
            joined = {robot.name for robot in robots} - {robot.name for robot in known.robots}
            check_fast(model.processor, demonstrations, joined)
    policy = policy_defaults(options.backbone)
    if policy is not None and policy.head == settings["kind"] == "fast" and not settings.get("tokenizer"):
        check_fast(model.processor, demonstrations, {robot.name for robot in robots})
    if data.replay:
        data.replay.check(model.processor)
    model.processor.tasks = tuple(sorted({*model.processor.tasks, *data.tasks()}))
    return model


def _average(data: RunData, plan: TrainConfig, make: Callable[[str], VLA]) -> VLA:
    """The average of several checkpoints, or the best of them."""
    options = data.options
    parents = parents_of(options.backbone)
    for parent, folder in zip(parents, checkpoints_of(parents), strict=True):
        if data.demonstrations and not Processor.load(folder).robots:
            raise InputError(
                f"{parent} has no action head, and each parent would get another: average them with data=null "
                "plan.steps=0 first"
            )
    if latest(Path(options.out)) is not None:  # the run resumes with the weights of its checkpoint
        return make(parents[0])
    return cook(parents, make, data.heldout, plan.vqa_margin)


def _origin(data: RunData) -> dict[str, Any]:
    """Where the model and the data of a run come from."""
    options = {**vars(data.options), "horizon": data.horizon}
    backbone, grpo = data.options.backbone, data.options.grpo
    origin = {name: value for name, value in options.items() if value and name not in NOT_ORIGIN}
    weights = [weights_of(parent) for parent in parents_of(backbone)] or None
    origin["backbone_weights"] = weights_of(backbone) if isinstance(backbone, str) else weights
    if data.replay:
        origin["replay_data"] = dict(data.replay.paths)
    if grpo and Path(judge := str(grpo.get("reward"))).is_dir():
        origin["reward_weights"] = weights_of(judge)
    return origin


def _optimizer_summary(plan: TrainConfig) -> str:
    """One line with the optimizer, the learning rates and the frozen parts."""
    frozen = ", ".join(plan.freeze) or "nothing"
    scales = "".join(f", {part} {scale:g} of it" for part, scale in plan.lr_multipliers.items() if scale != 1)
    return f"{plan.optimizer}, learning rate {plan.lr:g}{scales}; frozen: {frozen}"
