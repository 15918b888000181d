"""The training loop of the preference, reward and GRPO stages."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import batched
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vla.datasets.order import Order
from vla.datasets.preferences import Pair, pairs_of, read_pairs
from vla.datasets.vqa import VqaStore
from vla.errors import InputError
from vla.models.vla import VLA
from vla.training.distributed import join
from vla.training.log import log
from vla.training.loop import Evaluate, Evaluation, Outcome, finish, interrupts, resume, run_steps
from vla.training.optimizer import freeze
from vla.training.resumption import settings
from vla.training.state import Progress, TrainState
from vla.training.step import Diverged, computing
from vla.training.train_config import TrainConfig

HELD_OUT = 200

Loss = Callable[[Sequence[Pair]], tuple[Float[Tensor, ""], Mapping[str, float]]]
"""Computes the loss of a micro-batch of pairs, and the values to log."""


def open_pairs(
    stores: Mapping[str, VqaStore], plan: TrainConfig, files: Sequence[str] = (), images: str | None = None
) -> tuple[list[Pair], list[Pair]]:
    """Opens the training pairs and up to `HELD_OUT` held-out pairs, evenly spaced.

    Args:
        stores: Question stores, from which `pairs_of` makes pairs.
        plan: The training configuration.
        files: Files of pairs (`read_pairs`); every tenth pair is held out.
        images: The folder of the images of `files`.

    Raises:
        InputError: there are fewer pairs than a batch has or none is held out, or the plan has several ranks, loader
            workers or image augmentation, which these stages do not support.
    """
    if plan.loader_workers is not None:
        raise InputError("this stage reads its pairs itself: set plan.loader_workers=null")
    if plan.augmentation.enabled:
        raise InputError("this stage does not augment images: set plan.augment=0")
    if join().size > 1:
        raise InputError("this stage trains in one process: start it without torchrun")
    pairs = [pair for store in stores.values() for pair in pairs_of(store, "train", plan.seed)]
    heldout = [pair for store in stores.values() for pair in pairs_of(store, "held-out", plan.seed)]
    for path in files:
        read = read_pairs(path, images)
        heldout, pairs = heldout + read[::10], pairs + [pair for i, pair in enumerate(read) if i % 10]
    if len(pairs) < plan.batch_size or not heldout:
        raise InputError(
            f"{len(pairs)} pairs to train on and {len(heldout)} held out, for batches of {plan.batch_size}: "
            "vla record task=scenes questions=all records questions for pairs"
        )
    indices = np.unique(np.linspace(0, len(heldout) - 1, min(HELD_OUT, len(heldout))).astype(int))
    return pairs, [heldout[int(i)] for i in indices]


def optimize(
    model: VLA,
    pairs: Sequence[Pair],
    plan: TrainConfig,
    run: Path,
    loss: Loss,
    evaluate: Evaluate,
    better: str,
    uses: int = 1,
    origin: Mapping[str, Any] | None = None,
) -> Outcome:
    """Trains `model` in place on its device; resumes a run, and stops at signals, as `vla.training.cotrain.train` does.

    Args:
        model: The model.
        pairs: The training pairs.
        plan: The training configuration; a step has `plan.batch_size` pairs.
        run: The output folder.
        loss: Computes the loss of a micro-batch.
        evaluate: Computes the held-out scores.
        better: The score whose highest value is the best checkpoint, among those whose `vqa` is within
            `plan.vqa_margin` (`vla.training.checkpoint_gate`).
        uses: The number of successive steps per batch.
        origin: Where the model and the data come from (JSON values).
    """
    freeze(model, plan.freeze)
    progress = Progress(settings=settings(plan, {"pairs": 1.0}, origin or {}))
    state = TrainState(model, plan, run, ["pairs"], join(), progress)
    evaluation, order = Evaluation(evaluate, better), Order(len(pairs), plan.seed)
    resume(state, evaluation)
    start = state.progress.step
    with interrupts() as received, log(run, start, plan, state.world.first) as logger:

        def take_step() -> None:
            first = state.progress.step // uses * plan.batch_size
            indices = order(np.arange(first, first + plan.batch_size)).tolist()
            metrics = _take_step(state, [pairs[i] for i in indices], loss)
            logger.bar.update()
            logger.scalars(metrics, state.progress.step, "train/")

        run_steps(state, take_step, evaluation, logger, received)
    model.eval()
    return finish(state, start, received)


def _take_step(state: TrainState, pairs: Sequence[Pair], loss: Loss) -> dict[str, float]:
    """Trains for one step on its pairs; returns the loss and the values to log, means over the micro-batches."""
    plan, step = state.plan, state.progress.step
    torch.manual_seed((plan.seed * 1_000_003 + step) % 2**63)
    state.optimizer.zero_grad()
    metrics = dict[str, float]()
    for micro in batched(pairs, plan.rows(1)):
        with computing(plan, state.world):
            value, metrics_of_batch = loss(micro)
        (value / plan.accumulate).backward()
        for name, term in {"loss": value.item(), **metrics_of_batch}.items():
            metrics[name] = metrics.get(name, 0.0) + term / plan.accumulate
    trained = [p for p in state.model.parameters() if p.requires_grad]
    norm = torch.nn.utils.clip_grad_norm_(trained, plan.clip).item()
    if not math.isfinite(norm + metrics["loss"]):
        raise Diverged(f"the loss is not a number at step {step}, nothing was overwritten: lower plan.lr")
    state.update()
    return metrics
