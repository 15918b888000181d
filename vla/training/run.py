"""`vla train`: from stores to a checkpoint."""

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
ELSEWHERE = ("task", "out", "plan", "log", "stages", "probe_scenes")
"""Options that are no part of where a run comes from."""


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
    """Trains on the episodes of `data` (None: no robot) and the question stores `vqa`, into the folder `out`.

    `data` is a store, the source "robot", or several by name; those of one embodiment share its normalisation.
    `task` is there for the options, where it names the default of `data`.
    `backbone` is "nano" (pretrained, shipped), "scratch" (nano with random weights and a new tokenizer, trained whole
    whatever `plan` freezes), a checkpoint's folder, or what `vla.models.backbones.pretrained` opens. `mixture` weighs
    the sources by their names in `data` and `vqa`, with `temperature` also by their size; a store of `data` that it
    does not name
    weighs what it says of "robot".
    `horizon` is a chunk's, in steps or seconds, and `delay` the longest inference that it is trained for
    (`vla.training.horizon`).
    `log` is what tracks the run beside TensorBoard (`vla.training.tracking`).
    `head` says how actions are said (`vla.models.action_heads`), by its name or with its options; `state_encoding` how a
    state is told; `instruction` whether a step is trained with the episode's instruction or its sub-task's
    (`vla.datasets.prompts`).
    `predict` says which actions are predicted relative to the state and `normalization` how ranges are taken
    (`vla.training.demonstrations.robot_specs`); a policy that goes on has its own, and its ranges by `statistics`
    (`vla.models.build.build`).
    `lora` are the options of `vla.training.lora.adapt`, where adapters are to train in place of the backbone.
    `regression_gates` names what a checkpoint must keep of the model it starts from (`vla.training.regression_gates`).
    `kinds` names which kinds of question a store gives, all where none. `contrastive` are the options of
    `vla.training.contrastive.train`, where images and captions alone are to train, `preference` those of
    `vla.training.preference.train`, where pairs of answers are; `reward` and `grpo` those of the modules of that name,
    where a reward model is to learn from pairs, or a model from rewards; `stages` runs of this one after another, by
    what each
    changes, put to the probes of `probe_scenes` between them, on so many scenes (`vla.training.chain`).
    Images of questions are seen in up to `tiles` pieces, those of robots' cameras as `images` and `image_tokens` say
    (`vla.models.preprocessing.adapted.for_camera`), of all robots or by their names. A prefix-LM is asked one question
    a row, whatever `turns` is.
    Raises InputError, before anything is written, when a path is missing or the parts do not fit together.
    """
    options = dict(locals())
    if stages:
        return chain(train, {name: value for name, value in options.items() if name != "stages"}, stages)
    check_choice(instruction)
    plan = {**plan, "log": log}
    settings = make_train_config(plan)
    if settings.state_dropout and state_encoding != "numbers":
        raise InputError(
            f"state_dropout leaves out numbers, and state_encoding={state_encoding} writes the state into the prompt"
        )
    torch.manual_seed(settings.seed)
    paths = {} if data is None else {"robot": data} if isinstance(data, str) else data
    if both := sorted(paths.keys() & vqa.keys()):
        raise InputError(f"{', '.join(both)} names a store in data and one in vqa: choose another name")
    weights, kinds = dict(mixture), kinds or {}
    if paths and "robot" not in paths:
        every = weights.pop("robot", 0.0)
        weights = {name: every for name in paths} | weights
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
                f"{one.name} and {other.name} have the same components, and are normalised apart: two robots by their "
                f"names; `vla data rename STORE embodiment={one.name}` makes them one"
            )
    said = head_settings(head, list(demonstrations.values()), robots)
    texts = _texts(stores, [d.store for d in demonstrations.values()])
    ranges = Ranges(statistics, predict, normalization)
    model = build(backbone, robots, texts, said, state_encoding, tiles, ranges)
    model.processor.tasks = tuple(sorted({*model.processor.tasks, *_tasks(d.store for d in demonstrations.values())}))
    settings = make_train_config(plan, backbone_defaults(model.backbone, scratch=backbone == "scratch"))
    if backbone == "scratch":  # there is nothing yet to keep
        settings = replace(settings, freeze=(), lr_multipliers={})
    if join().first:
        print(_how(settings), flush=True)
    if lora is not None:
        if backbone == "scratch":
            raise InputError("lora adapts a pretrained backbone, and scratch is not: set lora=null")
        adapt(model, **lora)
    origin = {name: value for name, value in options.items() if value and name not in ELSEWHERE}
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

        kept, told = RegressionGates(model, regression_gates), evaluate

        def evaluate(trained: VLA) -> dict[str, float]:
            return told(trained) | kept(trained)

    if preference is not None:
        from vla.training.preference.train import train_preference

        return train_preference(model, stores, settings, Path(out), evaluate, origin=origin, **preference)
    if grpo is not None:
        from vla.training.preference.grpo import train_grpo

        return train_grpo(model, stores, settings, Path(out), evaluate, origin=origin, **grpo)
    origin["rows"] = {name: len(source) for name, source in sources.items()}
    return run_plan(model, mixed, settings, Path(out), evaluate, origin)


def _tasks(stores: Iterable[EpisodeStore]) -> set[str]:
    """The simulated tasks of their episodes."""
    named = {record.info.get("task") for store in stores for record in store.records}
    return {name for name in named if isinstance(name, str) and not name.endswith(".yaml") and is_task(name)}


def _how(plan: TrainConfig) -> str:
    """What trains, and at what rates, in a line."""
    frozen = ", ".join(plan.freeze) or "nothing"
    scales = "".join(f", {part} {scale:g} of it" for part, scale in plan.lr_multipliers.items() if scale != 1)
    return f"{plan.optimizer}, learning rate {plan.lr:g}{scales}; frozen: {frozen}"


def evaluator(
    questions: Mapping[str, Mapping[str, Sequence[Example]]], windows: Mapping[str, Sequence[Example]]
) -> Evaluate:
    """Scores: `action_error`, `vqa` (mean over the first store's kinds) and `<store>/<kind>` for each kind.

    `action_error` is a share of the range of the data (`action_errors`), the mean over the stores of episodes, of which
    `action_error_<store>` is that of each where there are several. `error of <component>` is each in its unit.
    """
    windows = {name: examples for name, examples in windows.items() if examples}

    def evaluate(model: VLA) -> dict[str, float]:
        scores: dict[str, float] = {}
        errors = {name: action_errors(model, examples) for name, examples in windows.items()}
        if errors:
            scores["action_error"] = float(np.mean([share for share, _ in errors.values()]))
        for name, (share, components) in errors.items():
            of = f"{name}: " if len(errors) > 1 else ""
            scores |= {f"action_error_{name}": share} if len(errors) > 1 else {}
            scores |= {f"{UNITS}{of}{component}": error for component, error in components.items()}
        for name, by_kind in questions.items():
            if not by_kind:  # too few images for a held-out one
                continue
            accuracy = vqa_accuracy(model, by_kind)
            scores.setdefault("vqa", float(np.mean(list(accuracy.values()))))
            scores |= {f"{name}/{kind}": value for kind, value in accuracy.items()}
        return scores

    return evaluate


def _texts(stores: Mapping[str, VqaStore], episodes: Sequence[EpisodeStore]) -> Iterator[str]:
    """What a new tokenizer learns its merges from: the stores' text, and the grammar of instructions."""
    for store in stores.values():
        yield from (f" {question.text} {question.answer}" for question in store.questions())
    for demonstrations in episodes:
        for record in demonstrations.records:
            spans = (span.instruction for span in record.spans)
            yield from (f" {text}" for text in (record.instruction, *record.paraphrases, *spans))
    yield from (f" {text}" for text in every_instruction())
