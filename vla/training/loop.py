"""The training loop over a mixture of sources."""

from __future__ import annotations

import shlex
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vla.datasets.mixture import Mixture
from vla.models.vla import VLA
from vla.training import checkpoint
from vla.training.blocks import compile_blocks, recompute_blocks
from vla.training.camera_dropout import report_dropout
from vla.training.checkpoint import Progress
from vla.training.checkpoint_gate import UNITS, choose
from vla.training.distributed import DistributedContext, join
from vla.training.geometry import check, report
from vla.training.gradients import gradient_report, gradient_shares
from vla.training.loader import prefetch
from vla.training.log import Log, log
from vla.training.optimizer import Ema, Optimizers, freeze
from vla.training.resumption import settings
from vla.training.step import Diverged, Totals, computing, run_step, uses_bf16
from vla.training.train_config import TrainConfig

__all__ = ["Diverged", "Evaluate", "Outcome", "TrainConfig", "train"]

Evaluate = Callable[[VLA], dict[str, float]]


@dataclass(frozen=True)
class Outcome:
    """The result of training. `finished` is False if a signal stopped it early."""

    step: int
    finished: bool
    best: Path | None
    evaluations: list[dict[str, Any]]

    def print_summary(self, run: Path, start: int, drives: bool) -> None:
        """Prints the location of the result, and the next command.

        Args:
            run: The folder of the run.
            start: The step at which this training began.
            drives: Whether the model controls a robot.
        """
        steps = f"{self.step} step{'s' * (self.step != 1)}"
        if not self.finished:
            print(f"{run} is stopped after {steps}, and saved: the same command resumes it", flush=True)
            return
        best = self.best or run
        scores: Mapping[str, float] = next(
            (e for e in reversed(self.evaluations) if f"step-{e['step']:08d}" == best.name), {}
        )
        main = [name for name in scores if "/" not in name and not name.startswith((UNITS, "step"))]
        summary = ", ".join(f"{name} {scores[name]:.3g}" for name in main)
        done = f"{run} has its {steps} already: set more plan.steps to continue" if start == self.step else steps
        command = f"vla {'eval' if drives else 'probe'} {shlex.quote(f'policy={run}')}"
        suffix = f" ({summary})" if summary else ""
        print(f"{done}. The best is {run / 'best'} -> {best.name}{suffix}: {command}", flush=True)


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
    world = join()
    plan.rows(world.size)
    check(plan.augmentation, model.processor)
    freeze(model, plan.freeze)
    if plan.compile:
        compile_blocks(model)
    if plan.checkpointing:
        recompute_blocks(model)
    world.shard(model, uses_bf16(plan.precision, world.device))
    run_settings = settings(plan, mixture.shares, origin or {})
    return _train(model.train(), mixture, plan, run, evaluate, world, run_settings)


def _train(
    model: VLA,
    mixture: Mixture,
    plan: TrainConfig,
    run: Path,
    evaluate: Evaluate | None,
    world: DistributedContext,
    run_settings: dict[str, Any],
) -> Outcome:
    ema = Ema(model, plan.ema)
    optimizer = Optimizers(model, plan.weight_decay, plan.lr_multipliers, plan.optimizer)
    progress, found = checkpoint.begin(run, run_settings, model, ema, optimizer, world)
    if found and progress.evaluations and progress.evaluations[-1]["step"] == progress.step:
        # The process may have been killed before the comparison.
        _select(run, found, progress.evaluations, plan.vqa_margin, world)
    start, sources = progress.step, list(mixture.shares)
    run.mkdir(parents=True, exist_ok=True)
    with (
        _signals() as stop,
        prefetch(model.processor, mixture, plan, start, world) as batches,
        log(run, start, plan, world.first) as logger,
    ):
        robots = model.processor.robots
        for line in (*report(plan.augmentation, model.processor), *report_dropout(plan.camera_dropout, robots)):
            logger.write_line(line)
        stopping = False
        while progress.step < plan.steps and not stopping:
            micro = next(batches)
            if progress.step % (plan.gradient_report or plan.evaluate_every) == 0 and plan.gradient_report != 0:
                measure = gradient_report if plan.gradient_report else gradient_shares
                logger.scalars(measure(model, micro, plan, progress.step, world, sources), progress.step)
            totals = run_step(model, micro, optimizer, plan, progress.step, world, sources, run)
            ema.update(model, progress.step)
            progress.step += 1
            progress.tokens = dict(
                Counter(progress.tokens) + Counter({s: total.elements for s, total in totals.items()})
            )
            _log_step(logger, totals, mixture, plan, progress)
            due = progress.step % plan.evaluate_every == 0 or progress.step == plan.steps
            if due and evaluate is not None:
                scores = _evaluated(model, ema, evaluate, plan, world)
                progress.evaluations.append({"step": progress.step} | scores)
                logger.scalars(scores, progress.step, "heldout/")
                logger.scores(progress.step, scores)
            # Read once per step: a later signal is handled in the next step, with a checkpoint.
            stopping = world.sum([len(stop)])[0] > 0
            if due or stopping:
                saved = checkpoint.save(run, progress, model, ema, optimizer, world)
                if due:
                    _select(run, saved, progress.evaluations, plan.vqa_margin, world)
        if progress.step > start:
            shares = ", ".join(f"{k} {v:.3f}" for k, v in _shares(mixture, plan, progress).items())
            logger.write_line(f"shares of what was trained on: {shares}")
    if signal.SIGINT in stop:
        raise KeyboardInterrupt
    ema.swap(model)
    outcome = Outcome(progress.step, progress.step >= plan.steps, checkpoint.best(run), progress.evaluations)
    if world.first:
        outcome.print_summary(run, start, bool(model.processor.robots))
    return outcome


def _select(
    run: Path, newest: Path, evaluations: Sequence[Mapping[str, Any]], margin: float, world: DistributedContext
) -> None:
    """Points `run/best` at the newest checkpoint, unless the gate prefers the one it points at."""
    if world.first:
        best, last = checkpoint.best(run), len(evaluations) - 1
        candidates = [last]
        if evaluations and best is not None:
            best_step = checkpoint.step_of(best)
            candidates = [i for i, e in enumerate(evaluations) if e["step"] == best_step] + [last]
        if not evaluations or choose(evaluations, margin, candidates) == last:
            checkpoint.mark_best(run, newest)
    world.barrier()


def _evaluated(
    model: VLA, ema: Ema, evaluate: Evaluate, plan: TrainConfig, world: DistributedContext
) -> dict[str, float]:
    """Evaluates the averaged weights. All ranks call it, since the model is sharded over them.

    On a GPU it computes in the training precision, in which weights may be gathered.
    """
    ema.swap(model)
    model.eval()
    try:
        with computing(plan, world) if world.device.type == "cuda" else nullcontext():
            return evaluate(model)
    finally:
        ema.swap(model)
        model.train()


def _log_step(logger: Log, totals: Totals, mixture: Mixture, plan: TrainConfig, progress: Progress) -> None:
    logger.bar.update()
    if progress.step % 10:
        return
    losses = {source: total.losses / total.elements for source, total in totals.items()}
    logger.bar.set_postfix({k: f"{v:.2f}" for k, v in losses.items()})
    logger.scalars(losses, progress.step, "loss/")
    logger.scalars(_shares(mixture, plan, progress), progress.step, "share/")
    logger.scalars({source: total.part for source, total in totals.items()}, progress.step, "share/loss/")


def _shares(mixture: Mixture, plan: TrainConfig, progress: Progress) -> dict[str, float]:
    """Each source's share of all rows, and of all tokens with a loss, so far: "rows/…", "tokens/…"."""
    kinds = {"rows": mixture.drawn(progress.step * plan.batch_size), "tokens": progress.tokens}
    return {f"{kind}/{name}": n / sum(counts.values()) for kind, counts in kinds.items() for name, n in counts.items()}


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collects SIGTERM and SIGINT, which are handled at the end of a step."""
    received: list[int] = []
    previous: dict[int, Any] = {}
    for number in (int(signal.SIGTERM), int(signal.SIGINT)):
        try:
            previous[number] = signal.signal(number, lambda n, _: received.append(n))
        except ValueError:  # only the main thread may handle signals
            break
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
