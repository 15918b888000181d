"""`vla train`: from stores to a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from vla.datasets.episodes import EpisodeStore
from vla.datasets.mixture import Conversations, Mixture, Source
from vla.datasets.statistics import Statistics
from vla.datasets.vqa import VqaStore
from vla.datasets.windows import Windows, split
from vla.envs.instructions import every_instruction
from vla.errors import InputError
from vla.model import VLA, smooth_rows
from vla.normalize import QuantileNormalizer
from vla.processor import Processor, RobotSpec
from vla.training.heldout import action_error, vqa_accuracy
from vla.training.loop import Evaluate, Outcome, Plan
from vla.training.loop import train as run_plan
from vla.types import Example
from vla.vlm.nano import nano, train_tokenizer

HELD_OUT_EPISODES = 0.05


def train(
    *,
    task: str | None = None,
    data: str | None,
    vqa: Mapping[str, str],
    out: str,
    backbone: str,
    mixture: Mapping[str, float],
    horizon: int,
    turns: int,
    heldout_questions: int,
    plan: Mapping[str, Any],
) -> Outcome:
    """Trains on the episodes of `data` (None: no robot) and the question stores `vqa`, into the folder `out`.

    `task` is there for the options, where it names the default of `data`.
    `backbone` is "nano" (pretrained, shipped), "scratch" (nano with random weights and a new tokenizer, trained whole
    whatever `plan` freezes), or a checkpoint's folder. `mixture` weighs the source "robot" and the names in `vqa`.
    Raises InputError, before anything is written, when a path is missing or the parts do not fit together.
    """
    settings = Plan(**{**plan, "freeze": tuple(plan.get("freeze", ()))})
    if backbone == "scratch":  # there is nothing yet to keep
        settings = replace(settings, freeze=(), lr_scales={})
    torch.manual_seed(settings.seed)
    stores = {name: VqaStore(path) for name, path in vqa.items() if mixture.get(name, 0) > 0}
    sources: dict[str, Source] = {name: Conversations(s, "train", turns) for name, s in stores.items()}
    robot, heldout, episodes = None, [], None
    if data is not None:
        episodes = EpisodeStore.open(data)
        train_episodes, heldout_episodes = split(len(episodes), HELD_OUT_EPISODES)
        robot = robot_spec(episodes, train_episodes, horizon)
        sources["robot"] = Windows(episodes, horizon, episodes=train_episodes)
        heldout = spread(Windows(episodes, horizon, stride=3, episodes=heldout_episodes), 128)
    mixed = Mixture(sources, mixture, settings.seed)
    model = build(backbone, robot, _texts(stores, episodes))
    questions = {n: heldout_by_kind(s, heldout_questions) for n, s in stores.items()}
    return run_plan(model, mixed, settings, Path(out), evaluator(questions, heldout))


def robot_spec(store: EpisodeStore, episodes: Sequence[int], horizon: int) -> RobotSpec:
    """Normalisers from the statistics of `episodes`."""
    state = store.statistics(episodes)["state"]
    action = Statistics.of(_anchored(store, episodes, horizon))
    return RobotSpec(
        embodiment=store.embodiment,
        horizon=horizon,
        state=QuantileNormalizer(tuple(state.q01), tuple(state.q99)),
        action=QuantileNormalizer(tuple(action.q01), tuple(action.q99)),
        statistics_hash=action.hash(),
        points=0 if store.points is None else store.points.shape[1],
    )


def _anchored(store: EpisodeStore, episodes: Sequence[int], horizon: int) -> Float[np.ndarray, "n a"]:
    """Every action of every chunk, as its distance from the state at the chunk's start."""
    parts = []
    for frames in (store.records[i].frames for i in episodes):
        action, anchor = store.action[frames], store.embodiment.anchor(store.state[frames])
        parts += [action[k:] - anchor[: len(anchor) - k] for k in range(min(horizon, len(action)))]
    return np.concatenate(parts)


def build(backbone: str, robot: RobotSpec | None, texts: Iterator[str]) -> VLA:
    """A model on the named backbone; its tokenizer is the backbone's, or for "scratch" trained on `texts`."""
    if backbone == "scratch":
        body, processor = nano(train_tokenizer(sorted(set(texts))))
        smooth_rows(body, torch.tensor(processor.points))
    else:
        base = VLA.load(Path(str(files("vla") / "assets" / "nano")) if backbone == "nano" else Path(backbone))
        body, processor = base.backbone, base.processor
        if processor.robot is not None and robot is not None:
            raise InputError(f"{backbone} has an action head already: give a vision-language model, or resume its run")
    if robot is not None and not processor.has_points:  # it has no words for them
        robot = replace(robot, points=0)
    tokens = body.tokens_per_image
    return VLA(body, Processor(processor.tokenizer, body.image_size, tokens, robot, processor.mean, processor.std))


def evaluator(questions: Mapping[str, Mapping[str, Sequence[Example]]], windows: Sequence[Example]) -> Evaluate:
    """Scores: `action_error`, `vqa` (mean over the first store's kinds) and `<store>/<kind>` for each kind."""

    def evaluate(model: VLA) -> dict[str, float]:
        scores: dict[str, float] = {}
        if windows:
            scores["action_error"] = action_error(model, windows)
        for name, by_kind in questions.items():
            if not by_kind:  # too few images for a held-out one
                continue
            accuracy = vqa_accuracy(model, by_kind)
            scores.setdefault("vqa", float(np.mean(list(accuracy.values()))))
            scores |= {f"{name}/{kind}": value for kind, value in accuracy.items()}
        return scores

    return evaluate


def heldout_by_kind(store: VqaStore, count: int) -> dict[str, list[Example]]:
    """Up to `count` held-out questions of each kind that has any, spread over the store."""
    if count < 1:
        return {}
    kinds = sorted({question.kind for question in store.questions("held-out")})
    return {kind: spread(store.examples("held-out", kinds=[kind]), count) for kind in kinds}


def spread(examples: Sequence[Example] | Windows, count: int) -> list[Example]:
    """Up to `count` of the examples, evenly spaced."""
    chosen = np.unique(np.linspace(0, len(examples) - 1, min(count, len(examples))).astype(int))
    return [examples[int(i)] for i in chosen] if len(examples) else []


def _texts(stores: Mapping[str, VqaStore], episodes: EpisodeStore | None) -> Iterator[str]:
    """What a new tokenizer learns its merges from: the stores' text, and the grammar of instructions."""
    for store in stores.values():
        yield from (f" {question.text} {question.answer}" for question in store.questions())
    if episodes is not None:
        yield from (f" {record.instruction}" for record in episodes.records)
    yield from (f" {text}" for text in every_instruction())
