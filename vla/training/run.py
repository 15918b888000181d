"""`vla train`: trains a model on stores."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vla.datasets.episodes import EpisodeStore
from vla.datasets.mixture import Conversations, Mixture, Source
from vla.datasets.prompts import check_choice
from vla.datasets.vqa import VqaStore
from vla.envs.instructions import every_instruction
from vla.envs.make import is_task
from vla.errors import InputError
from vla.evaluation.heldout import action_errors, heldout_by_kind, spread, vqa_accuracy
from vla.evaluation.vlm.answerer import weights_of
from vla.models.action_targets import RELATIVE
from vla.models.build import build, checkpoint_folder
from vla.models.continued import Ranges
from vla.models.normalization import QUANTILE
from vla.models.processor import is_like
from vla.models.robot_spec import with_cameras
from vla.models.vla import VLA
from vla.training.action_head import head_settings
from vla.training.backbone_defaults import backbone_defaults
from vla.training.camera_dropout import check_dropout
from vla.training.chain import chain
from vla.training.checkpoint_gate import UNITS
from vla.training.demonstrations import Demonstrations, robot_specs
from vla.training.distributed import join
from vla.training.history import with_history
from vla.training.horizon import horizon_steps
from vla.training.loop import Evaluate, Outcome
from vla.training.loop import train as run_plan
from vla.training.lora import adapt
from vla.training.train_config import TrainConfig, make_train_config
from vla.types import Example

HELD_OUT_WINDOWS = 128
NOT_ORIGIN = ("task", "out", "plan", "log", "stages", "probe_scenes")
"""Options that are not recorded as the origin of a run."""


def train(
    *,
    task: str | None = None,
    data: str | Mapping[str, str] | None,
    vqa: Mapping[str, str],
    out: str,
    backbone: str | Mapping[str, Any],
    mixture: Mapping[str, float],
    temperature: float | None = None,
    horizon: int | float | str | None,
    turns: int,
    heldout_questions: int,
    plan: Mapping[str, Any],
    log: str | None = None,
    head: str | Mapping[str, Any] = "parallel",
    state_encoding: str = "numbers",
    tiles: int | None = None,
    images: str | Mapping[str, str] | None = None,
    image_tokens: int | Mapping[str, int] | None = None,
    instruction: str = "both",
    predict: str | Mapping[str, str] | None = None,
    normalization: str | Mapping[str, str] | None = None,
    statistics: str | None = None,
    delay: float | str | None = None,
    lora: Mapping[str, Any] | None = None,
    regression_gates: Mapping[str, Mapping[str, Any]] | None = None,
    kinds: Mapping[str, Sequence[str]] | None = None,
    contrastive: Mapping[str, Any] | None = None,
    preference: Mapping[str, Any] | None = None,
    reward: Mapping[str, Any] | None = None,
    grpo: Mapping[str, Any] | None = None,
    stages: Mapping[str, Mapping[str, Any]] | None = None,
    probe_scenes: Mapping[str, int] | None = None,
) -> Outcome:
    """Trains a model on episodes and questions, and writes its checkpoints to the folder `out`.

    Args:
        task: Not used; configurations derive the default of `data` from it.
        data: An episode store (the source "robot"), or several by name; None: no robot. Stores of one embodiment share
            its normalisation.
        vqa: The question stores by name.
        out: The folder of the run.
        backbone: "nano" (pretrained, shipped), "scratch" (nano with random weights and a new tokenizer; nothing is
            frozen), the folder of a checkpoint, or an argument of `vla.models.backbones.pretrained`.
        mixture: The weight of each source of `data` and `vqa`; stores of `data` without a weight have that of "robot".
        temperature: Weighs the sources by their size as well.
        horizon: The horizon of an action chunk, in steps or seconds (`vla.training.horizon`).
        turns: Questions per row; a prefix-LM has one.
        heldout_questions: Held-out questions of each kind.
        plan: The keys of `TrainConfig`.
        log: An experiment tracker in addition to TensorBoard (`vla.training.tracking`).
        head: The action head (`vla.models.action_heads`), by name or with its options.
        state_encoding: Whether the state is passed as numbers or as text.
        tiles: The maximum number of tiles of a question's image.
        images: Image preprocessing of the robot cameras (`vla.models.preprocessing.adapted.for_camera`), for all robots
            or by name.
        image_tokens: Tokens per robot image, for all robots or by name.
        instruction: Whether steps have the instruction of the episode or of the sub-task (`vla.datasets.prompts`).
        predict: Which actions are predicted relative to the state (`vla.training.demonstrations.robot_specs`).
        normalization: How ranges are computed (likewise). A policy that is trained further keeps its own.
        statistics: The ranges of a policy that is trained further (`vla.models.build.build`).
        delay: The longest inference delay in training (`vla.training.horizon`).
        lora: Options of `vla.training.lora.adapt`, to train adapters instead of the backbone.
        regression_gates: Scores that a checkpoint must retain (`vla.training.regression_gates`).
        kinds: The kinds of questions to use of each store; by default all.
        contrastive: Options of `vla.training.contrastive.train`, to train on captions only.
        preference: Options of `vla.training.preference.train`, to train on pairs of answers.
        reward: Options of `vla.training.preference.reward`, to train a reward model on pairs of answers.
        grpo: Options of `vla.training.preference.grpo`, to train on rewards.
        stages: Successive trainings, by name with the options that each overrides (`vla.training.chain`).
        probe_scenes: The probes to run between stages, with the number of scenes.

    Raises:
        InputError: a path is missing or options are inconsistent; before anything is written.
    """
    options = dict(locals())
    if stages:
        return chain(train, {name: value for name, value in options.items() if name != "stages"}, stages)
    check_choice(instruction)
    plan = {**plan, "log": log}
    settings = make_train_config(plan)
    if settings.state_dropout and state_encoding != "numbers":
        raise InputError(
            f"state_dropout needs state_encoding=numbers: state_encoding={state_encoding} writes the state as text"
        )
    torch.manual_seed(settings.seed)
    paths = {} if data is None else {"robot": data} if isinstance(data, str) else data
    if both := sorted(paths.keys() & vqa.keys()):
        raise InputError(f"{', '.join(both)} names a store in data and one in vqa: choose another name")
    weights, kinds = dict(mixture), kinds or {}
    if paths and "robot" not in paths:
        default = weights.pop("robot", 0.0)
        weights = {name: default for name in paths} | weights
    stores = {name: VqaStore(path) for name, path in vqa.items() if weights.get(name, 0) > 0}
    demonstrations = {name: Demonstrations.open(path) for name, path in paths.items()}
    rates = [d.store.embodiment.control_hz for d in demonstrations.values()]
    kind = head if isinstance(head, str) else str(head.get("kind"))
    options["horizon"] = horizon = horizon_steps(horizon, rates, kind, checkpoint_folder(backbone))
    fewer = settings.camera_dropout > 0
    robots = robot_specs(list(demonstrations.values()), horizon, predict or RELATIVE, normalization or QUANTILE, fewer)
    check_dropout(settings.camera_dropout, robots)
    robots = with_history(with_cameras(robots, images, image_tokens), settings.history)
    for one, other in combinations(robots, 2):
        if is_like(one.embodiment, other.embodiment):
            print(
                f"{one.name} and {other.name} have the same components, but are normalised separately because their "
                f"names differ; `vla data rename STORE embodiment={one.name}` makes them one robot"
            )
    resolved_head = head_settings(head, list(demonstrations.values()), robots)
    texts = _texts(stores, [d.store for d in demonstrations.values()])
    ranges = Ranges(statistics, predict, normalization)
    model = build(backbone, robots, texts, resolved_head, state_encoding, tiles, ranges)
    model.processor.tasks = tuple(sorted({*model.processor.tasks, *_tasks(d.store for d in demonstrations.values())}))
    settings = make_train_config(plan, backbone_defaults(model.backbone, scratch=backbone == "scratch"))
    if backbone == "scratch":  # no pretrained weights to protect
        settings = replace(settings, freeze=(), lr_multipliers={})
    if join().first:
        print(_optimizer_summary(settings), flush=True)
    if lora is not None:
        if backbone == "scratch":
            raise InputError("lora adapts a pretrained backbone, and scratch is not: set lora=null")
        adapt(model, **lora)
    origin = {name: value for name, value in options.items() if value and name not in NOT_ORIGIN}
    origin["backbone_weights"] = weights_of(backbone) if isinstance(backbone, str) else None
    if grpo and Path(judge := str(grpo.get("reward"))).is_dir():
        origin["reward_weights"] = weights_of(judge)
    if contrastive is not None:
        from vla.training.contrastive.train import train_contrastive

        return train_contrastive(model, stores, settings, Path(out), origin=origin, **contrastive)
    if reward is not None:
        from vla.training.preference.reward import train_reward

        return train_reward(model, stores, settings, Path(out), origin=origin, **reward)
    turns = 1 if model.processor.chat.prefix_lm else turns
    sources: dict[str, Source] = {name: Conversations(s, "train", turns, kinds.get(name)) for name, s in stores.items()}
    past = {n: model.processor.robot(d.store.embodiment.name).history for n, d in demonstrations.items()}
    sources |= {name: d.windows(horizon, instruction, delay, past[name]) for name, d in demonstrations.items()}
    mixed = Mixture(sources, weights, settings.seed, temperature)
    questions = {n: heldout_by_kind(s, heldout_questions, kinds.get(n)) for n, s in stores.items()}
    heldout = {
        name: spread(d.heldout(horizon, instruction, past[name]), HELD_OUT_WINDOWS)
        for name, d in demonstrations.items()
    }
    evaluate = evaluator(questions, heldout)
    if regression_gates:
        from vla.training.regression_gates import RegressionGates

        gates, heldout_scores = RegressionGates(model, regression_gates), evaluate

        def evaluate(trained: VLA) -> dict[str, float]:
            return heldout_scores(trained) | gates(trained)

    if preference is not None:
        from vla.training.preference.train import train_preference

        return train_preference(model, stores, settings, Path(out), evaluate, origin=origin, **preference)
    if grpo is not None:
        from vla.training.preference.grpo import train_grpo

        return train_grpo(model, stores, settings, Path(out), evaluate, origin=origin, **grpo)
    origin["rows"] = {name: len(source) for name, source in sources.items()}
    return run_plan(model, mixed, settings, Path(out), evaluate, origin)


def _tasks(stores: Iterable[EpisodeStore]) -> set[str]:
    """The simulated tasks of the stores' episodes."""
    named = {record.info.get("task") for store in stores for record in store.records}
    return {name for name in named if isinstance(name, str) and not name.endswith(".yaml") and is_task(name)}


def _optimizer_summary(plan: TrainConfig) -> str:
    """One line with the optimizer, the learning rates and the frozen parts."""
    frozen = ", ".join(plan.freeze) or "nothing"
    scales = "".join(f", {part} {scale:g} of it" for part, scale in plan.lr_multipliers.items() if scale != 1)
    return f"{plan.optimizer}, learning rate {plan.lr:g}{scales}; frozen: {frozen}"


def evaluator(
    questions: Mapping[str, Mapping[str, Sequence[Example]]], windows: Mapping[str, Sequence[Example]]
) -> Evaluate:
    """Builds the function that computes the held-out scores of a model.

    | score                     | value                                                                       |
    |---------------------------|-----------------------------------------------------------------------------|
    | `action_error`            | share of the data's range (`action_errors`), mean over the episode stores   |
    | `action_error_<store>`    | the same of one store, if there are several                                 |
    | `error of <component>`    | error of an action component in its unit                                    |
    | `vqa`                     | mean accuracy over the question kinds of the first question store           |
    | `<store>/<kind>`          | accuracy of one kind of question                                            |
    """
    windows = {name: examples for name, examples in windows.items() if examples}

    def evaluate(model: VLA) -> dict[str, float]:
        scores: dict[str, float] = {}
        errors = {name: action_errors(model, examples) for name, examples in windows.items()}
        if errors:
            scores["action_error"] = float(np.mean([share for share, _ in errors.values()]))
        for name, (share, components) in errors.items():
            prefix = f"{name}: " if len(errors) > 1 else ""
            scores |= {f"action_error_{name}": share} if len(errors) > 1 else {}
            scores |= {f"{UNITS}{prefix}{component}": error for component, error in components.items()}
        for name, by_kind in questions.items():
            if not by_kind:  # the store has too few images for held-out ones
                continue
            accuracy = vqa_accuracy(model, by_kind)
            scores.setdefault("vqa", float(np.mean(list(accuracy.values()))))
            scores |= {f"{name}/{kind}": value for kind, value in accuracy.items()}
        return scores

    return evaluate


def _texts(stores: Mapping[str, VqaStore], episodes: Sequence[EpisodeStore]) -> Iterator[str]:
    """The training text of a new tokenizer: the text of the stores, and all generated instructions."""
    for store in stores.values():
        yield from (f" {question.text} {question.answer}" for question in store.questions())
    for demonstrations in episodes:
        for record in demonstrations.records:
            spans = (span.instruction for span in record.spans)
            yield from (f" {text}" for text in (record.instruction, *record.paraphrases, *spans))
    yield from (f" {text}" for text in every_instruction())
