"""The training loop of the preference, reward and GRPO stages."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import batched

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from vla.datasets.order import Order
from vla.datasets.preferences import Pair, pairs_of, read_pairs
from vla.errors import InputError
from vla.training.distributed import join
from vla.training.log import log
from vla.training.loop import Evaluation, Outcome, finish, interrupts, resume, run_steps
from vla.training.optimizer import freeze
from vla.training.question_run import QuestionRun
from vla.training.resumption import settings
from vla.training.state import Progress, TrainState
from vla.training.step import Diverged, computing

HELD_OUT = 200

Loss = Callable[[Sequence[Pair]], tuple[Float[Tensor, ""], Mapping[str, float]]]
"""Computes the loss of a micro-batch of pairs, and the values to log."""


def open_pairs(run: QuestionRun, files: Sequence[str] = (), images: str | None = None) -> tuple[list[Pair], list[Pair]]:
    """Opens the training pairs and up to `HELD_OUT` held-out pairs, evenly spaced.

    Args:
        run: The run, from whose stores `pairs_of` makes pairs.
        files: Files of pairs (`read_pairs`); every tenth pair is held out.
        images: The folder of the images of `files`.

    Raises:
        InputError: there are fewer pairs than a batch has or none is held out, or the plan has several ranks, loader
            workers or image augmentation, which these stages do not support.
    """
    stores, plan = run.stores, run.plan
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


def optimize(run: QuestionRun, pairs: Sequence[Pair], loss: Loss, evaluation: Evaluation, uses: int = 1) -> Outcome:
    """Trains a model in place on its device; resumes a run, and stops at signals, as `vla.training.cotrain.train`.

    Args:
        run: The run; a step has `plan.batch_size` pairs.
        pairs: The training pairs.
        loss: Computes the loss of a micro-batch.
        evaluation: The held-out scores, and which of them selects the best checkpoint.
        uses: The number of successive steps per batch.
    """
    model, plan, folder = run.model, run.plan, run.folder
    freeze(model, plan.freeze)
    progress = Progress(settings=settings(plan, {"pairs": 1.0}, run.origin))
    state = TrainState(model, plan, folder, ["pairs"], join(), progress)
    order = Order(len(pairs), plan.seed)
    resume(state, evaluation)
    start = state.progress.step
    with interrupts() as received, log(folder, start, plan, state.world.first) as logger:

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
