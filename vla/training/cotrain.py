"""Training on a mixture of demonstrations and visual questions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from vla.datasets.mixture import Mixture
from vla.models.batch import Batch
from vla.models.vla import VLA
from vla.training.blocks import compile_blocks, recompute_blocks
from vla.training.camera_dropout import report_dropout
from vla.training.distributed import join
from vla.training.geometry import check, report
from vla.training.gradients import gradient_report, gradient_shares
from vla.training.loader import prefetch
from vla.training.log import Log, log
from vla.training.loop import Evaluate, Evaluation, Outcome, finish, interrupts, resume, run_steps
from vla.training.optimizer import freeze
from vla.training.resumption import settings
from vla.training.state import Progress, TrainState
from vla.training.step import Totals, computing, run_step, uses_bf16
from vla.training.train_config import TrainConfig


def train(
    model: VLA,
    mixture: Mixture,
    plan: TrainConfig,
    run: Path,
    evaluate: Evaluate | None = None,
    origin: Mapping[str, Any] | None = None,
) -> Outcome:
    """Trains `model` in place, on a GPU if available and on all ranks that torchrun started.

    A run with checkpoints is resumed from the newest one. SIGTERM to any rank saves a checkpoint and returns. SIGINT
    saves one and raises KeyboardInterrupt.

    Args:
        model: The model.
        mixture: The training data.
        plan: The training configuration.
        run: The output folder.
        evaluate: Computes the held-out scores of the averaged model.
        origin: Where the model and the data come from (JSON values).

    Raises:
        InputError: the run cannot be resumed with this plan (`vla.training.resumption`).
    """
    state = _start(model, mixture, plan, run, origin or {})
    evaluation = Evaluation(evaluate and _in_training_precision(evaluate, state))
    resume(state, evaluation)
    start = state.progress.step
    with (
        interrupts() as received,
        prefetch(model.processor, mixture, plan, start, state.world) as batches,
        log(run, start, plan, state.world.first) as logger,
    ):
        robots = model.processor.robots
        for line in (*report(plan.augmentation, model.processor), *report_dropout(plan.camera_dropout, robots)):
            logger.write_line(line)

        def take_step() -> None:
            micro = next(batches)
            _log_gradients(logger, state, micro)
            _log_step(logger, run_step(state, micro), mixture, state)

        run_steps(state, take_step, evaluation, logger, received)
        if state.progress.step > start:
            shares = ", ".join(f"{k} {v:.3f}" for k, v in _shares(mixture, state).items())
            logger.write_line(f"shares of what was trained on: {shares}")
    return finish(state, start, received)


def _start(model: VLA, mixture: Mixture, plan: TrainConfig, run: Path, origin: Mapping[str, Any]) -> TrainState:
    """Prepares the model for training: freezes, compiles and shards it."""
    world = join()
    plan.rows(world.size)
    check(plan.augmentation, model.processor)
    freeze(model, plan.freeze)
    if plan.compile:
        compile_blocks(model)
    if plan.checkpointing:
        recompute_blocks(model)
    world.shard(model, uses_bf16(plan.precision, world.device))
    progress = Progress(settings=settings(plan, mixture.shares, origin))
    return TrainState(model.train(), plan, run, list(mixture.shares), world, progress)


def _in_training_precision(evaluate: Evaluate, state: TrainState) -> Evaluate:
    """Evaluates in the training precision on a GPU, since weights may be gathered in it."""

    def evaluate_in_precision(model: VLA) -> dict[str, float]:
        with computing(state.plan, state.world) if state.world.device.type == "cuda" else nullcontext():
            return evaluate(model)

    return evaluate_in_precision


def _log_gradients(logger: Log, state: TrainState, micro: Sequence[Batch]) -> None:
    """Logs the gradients of the sources (`plan.gradient_report`)."""
    interval, step = state.plan.gradient_report, state.progress.step
    if interval != 0 and step % (interval or state.plan.evaluate_every) == 0:
        measure = gradient_report if interval else gradient_shares
        logger.scalars(measure(state, micro), step)


def _log_step(logger: Log, totals: Totals, mixture: Mixture, state: TrainState) -> None:
    logger.bar.update()
    step = state.progress.step
    if step % 10:
        return
    losses = {source: total.losses / total.elements for source, total in totals.items()}
    logger.bar.set_postfix({k: f"{v:.2f}" for k, v in losses.items()})
    logger.scalars(losses, step, "loss/")
    logger.scalars(_shares(mixture, state), step, "share/")
    logger.scalars({source: total.part for source, total in totals.items()}, step, "share/loss/")


def _shares(mixture: Mixture, state: TrainState) -> dict[str, float]:
    """Each source's share of all rows, and of all tokens with a loss, so far: "rows/…", "tokens/…"."""
    progress = state.progress
    kinds = {"rows": mixture.drawn(progress.step * state.plan.batch_size), "tokens": progress.tokens}
    return {f"{kind}/{name}": n / sum(counts.values()) for kind, counts in kinds.items() for name, n in counts.items()}
